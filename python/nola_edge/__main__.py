"""``python -m nola_edge``: the command line."""

from nola_edge.cli import main

main()
