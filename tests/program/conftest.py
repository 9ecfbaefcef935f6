"""The program `nola`, built once, and how to run it and the Python tool on the same arguments."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.cli.in_process import Done, call
from tests.conftest import default_signals, snapshot


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


class Both:
    """Runs both tools on the same arguments, and compares what they write and say."""

    def __init__(self, nola, python_tool, folder):
        self.nola = nola
        self.python_tool = python_tool
        self.folder = folder

    def written(self, *command, output, **variables):
        """Return what the program writes, and what each tool says, its output called OUT.

        `variables` are of the program's environment.
        """
        contents, said = [], []
        for tool in (self.python_tool, self.nola):
            out = self.folder / tool.name / output
            out.parent.mkdir(exist_ok=True)
            done = tool(*command, "-o", out, **(variables if tool is self.nola else {}))
            assert done.returncode == 0, done
            contents.append(out.read_bytes())
            said.append([text.replace(str(out), "OUT") for text in (done.stdout, done.stderr)])
            out.unlink()
            assert not list(out.parent.iterdir())
        assert contents[0] == contents[1]
        return contents[1], said

    def refused(self, *command):
        """Return what both say, but for their names and Python's words for an option."""
        before = snapshot(self.folder)
        wanted, said = (tool.refused(*command) for tool in (self.python_tool, self.nola))
        assert snapshot(self.folder) == before
        assert said == wanted.replace("see nola-edge ", "see nola ").replace(
            " (in Python check_result=False)", ""
        )
        return said


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
