"""Run a part of the demonstration in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

from nola_edge.errors import NolaEdgeError
from nola_edge.processes import python_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO


@contextlib.contextmanager
def started(module: str, *arguments: object, **environment: str) -> Iterator[Iterator[Any]]:
    """Run a module beside this process, and end it if it is left early.

    Parameters
    ----------
    module : str
    *arguments
        Of the command line.
    **environment : str
        Variables that the process gets beside those of this one.

    Yields
    ------
    iterator
        The JSON of each line that it prints, as it comes; raises a NolaEdgeError if it fails.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            python_module(module, *map(str, arguments)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        ) as child,
    ):
        try:
            yield _results(child, errors, module)
        finally:
            child.kill()


def _results(child: subprocess.Popen[str], errors: IO[str], module: str) -> Iterator[Any]:
    assert child.stdout is not None
    yield from map(json.loads, child.stdout)
    if child.wait() != 0:
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["killed"])[-1]
        raise NolaEdgeError(f"part of the demonstration failed: {last}", field=module)


def result_of(module: str, *arguments: object, **environment: str) -> Any:
    """Run a module and return the JSON of the one line that it prints; see :func:`started`."""
    with started(module, *arguments, **environment) as results:
        (result,) = results
        return result
