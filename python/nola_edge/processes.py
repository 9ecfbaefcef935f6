"""Start Python where the current folder is not searched for modules: whose it is, nobody knows."""

from __future__ import annotations

import sys

# Both -c and -m put the current folder first, and -P, which does not, is newer than Python 3.10.
_WITHOUT_FOLDER = "import sys; sys.path[:1] = filter(None, sys.path[:1])"
_RUN = "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs one line of code."""
    return [sys.executable, "-c", f"{_WITHOUT_FOLDER}; {code}", *arguments]


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module, as ``python -m`` would."""
    return python(_RUN, name, *arguments)
