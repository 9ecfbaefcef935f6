"""The program `nola`, built once, and how to run it and the Python tool on the same arguments."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.cli.in_process import Done, call
from tests.conftest import default_signals


class PythonTool:
    """`nola-edge`, within the test's process: a tenth of the time of one of its own."""

    name = "nola-edge"

    def __call__(self, *arguments):
        return call(*arguments)

    def refused(self, *arguments, **variables):
        """Return the one line with which it refuses, without its own name."""
        done = self(*arguments, **variables)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.count("\n") == 1, done
        assert done.stderr[:-1].isprintable()
        assert done.stderr.startswith(f"{self.name}: ")
        return done.stderr.removeprefix(f"{self.name}: ").rstrip("\n")


class Program(PythonTool):
    """`nola`, in a process of its own.

    Parameters
    ----------
    command : list of str
        What it is run as.
    """

    name = "nola"

    def __init__(self, command):
        self.command = command

    def __call__(self, *arguments, **variables):
        """Run it with arguments, and variables of the environment besides."""
        done = subprocess.run(
            [*self.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            preexec_fn=default_signals,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def nola(request):
    """The program. NOLA_PROGRAM says how to run one that was built elsewhere, under qemu say."""
    stated = os.environ.get("NOLA_PROGRAM")
    if stated is not None:
        return Program(shlex.split(stated))
    return Program([str(request.getfixturevalue("library_build") / "nola")])


@pytest.fixture(scope="session")
def python_tool():
    return PythonTool()


@pytest.fixture(params=["nola", "nola-edge"])
def tool(request):
    """Each of the two, which must do the same."""
    return request.getfixturevalue("nola" if request.param == "nola" else "python_tool")
