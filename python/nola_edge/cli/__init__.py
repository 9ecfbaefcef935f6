"""The command line, ``nola-edge``."""

from nola_edge.cli.main import main

__all__ = ["main"]
