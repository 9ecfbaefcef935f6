"""Files and folders: read and checked, or written so that they are absent or complete.

Nothing here knows what an adapter is.
"""
