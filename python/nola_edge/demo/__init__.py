"""What ``nola-edge demo`` shows: a small decoder that adapters teach, and a merge measured.

``data/`` holds the decoder and its adapters; ``examples/training/make_demo.py`` made them.
"""
