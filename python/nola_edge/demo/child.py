"""Run a part of the demonstration in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from nola_edge.errors import NolaEdgeError
from nola_edge.processes import python_module


def result_of(module: str, *arguments: object, **environment: str) -> Any:
    """Run a module and return the JSON that it prints.

    Parameters
    ----------
    module : str
    *arguments
        Of the command line.
    **environment : str
        Variables that the process gets beside those of this one.

    Raises
    ------
    NolaEdgeError
        If it fails.
    """
    command = python_module(module, *map(str, arguments))
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise NolaEdgeError(f"part of the demonstration failed: {last}", field=module)
    return json.loads(done.stdout)
