"""Run a command within the test's own process: a tenth of the time of a process of its own."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from nola_edge.cli import main as command_line


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(*arguments: object) -> Done:
    """Return status and output of ``nola-edge`` with some arguments; signals are not handled."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(command_line, "_handle_signals"),
        patch.object(command_line.cli, "done", None),
    ):
        try:
            command_line.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return Done(int(status or 0), *texts)


def refused(*arguments: object) -> str:
    """Return the one line on stderr of a command that is refused, and prints nothing else."""
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.count("\n") == 1, done
    assert done.stderr[:-1].isprintable()
    return done.stderr
