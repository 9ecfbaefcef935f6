"""``nola-edge`` and ``python -m nola_edge``: the command line."""

import _signal  # type: ignore[import-not-found]  # there from the start, unlike signal
import os
import sys


def main() -> None:
    """Import the command line and run it; a signal never ends in a traceback."""
    # What is imported takes a fraction of a second, changes nothing, and may be interrupted as any
    # program in C may: it ends without a word. The same goes for the way out.
    _end_at_once()
    if not _only_tells():
        import numpy  # noqa: F401

    from nola_edge.cli.main import main as run

    try:
        run()
    finally:
        _end_at_once()


def _only_tells() -> bool:
    """Tell whether nothing is computed: somebody waits for help, or a shell for completions."""
    asked = {"--help", "-h", "--version", "-V"} & set(sys.argv)
    return bool(asked) or len(sys.argv) < 2 or "_NOLA_EDGE_COMPLETE" in os.environ


def _end_at_once() -> None:
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)


if __name__ == "__main__":
    main()
