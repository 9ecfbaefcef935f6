"""Runs the command line in processes of its own, each with a fault, many a second.

One process imports everything under the preloaded library (``fault.c``) and then forks for every
command: what is killed, fails or is interfered with is a real process with its own fault.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import default_signals

_FAULT = "NOLA_FAULT_"


def with_faults(library):
    """Return an environment with ``fault.c``; the calls that it counts are the same at each run."""
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit status, or less than zero for a signal."""

    returncode: int
    stderr: str


class Commands:
    """Forks a process for each command; a context manager.

    Parameters
    ----------
    library : path
        Of ``fault.c``, to preload.
    """

    def __init__(self, library):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.commands"],
            env=with_faults(library),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(self, arguments, fault):
        """Run ``nola-edge`` with arguments; `fault` holds the variables of ``fault.c``."""
        variables = {_FAULT + name.upper(): str(value) for name, value in fault.items()}
        request = {"arguments": [str(a) for a in arguments], "variables": variables}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return Done(**json.loads(self._server.stdout.readline()))


def _serve():
    import ctypes

    from nola_edge.cli.main import main

    begin_anew = ctypes.CDLL(None).nola_fault_begin_anew
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if child == 0:
                _become(main, request, said.fileno(), begin_anew)
            _, status = os.waitpid(child, 0)
            said.seek(0)
            done = {"returncode": os.waitstatus_to_exitcode(status), "stderr": said.read()}
        print(json.dumps(done), flush=True)


def _become(main, request, stderr, begin_anew):
    """Be the command, and never return."""
    status = 70
    try:
        with Path(os.devnull).open("r+b") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
        os.dup2(stderr, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request["variables"])
        begin_anew()
        main(request["arguments"])
    except SystemExit as error:
        status = error.code
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
