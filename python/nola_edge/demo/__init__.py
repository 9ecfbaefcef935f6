"""What ``nola-edge demo`` shows: a model that adapters teach, and a merge measured.

``data/`` holds a small decoder and its adapters, which ``examples/training/make_demo.py`` made, and
an adapter for a real model, by ``examples/training/make_commands.py``.
"""
