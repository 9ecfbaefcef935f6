"""The command line, ``nola-edge``; :mod:`nola_edge.__main__` runs it."""
