"""Standard streams that are closed or full, without spoiling what was done before it is told of."""

from __future__ import annotations

import io
import os
import sys


class Stdout(io.FileIO):
    """Standard output's bytes; keeps the first error instead of raising it.

    A closed pipe is not such an error: the reader has seen enough, and the program ends.

    Attributes
    ----------
    error : OSError or None
        Why something could not be written.
    """

    error: OSError | None = None

    def write(self, data: object) -> int:
        """Write bytes, or drop them once that has failed."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes  # type: ignore[arg-type]


def open_closed_streams() -> None:
    """Open what of the standard streams is closed, to nowhere.

    Else a file that is written would get its number, and with it what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free one: the stream's own
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def replace_stdout() -> Stdout | None:
    """Put a :class:`Stdout` below ``sys.stdout``; None if that is not a system file."""
    text = sys.stdout
    if not isinstance(text, io.TextIOWrapper):
        return None
    try:
        number = text.fileno()
    except OSError:
        return None
    text.flush()
    raw = Stdout(number, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=text.encoding,
        errors=text.errors,
        line_buffering=text.line_buffering,
    )
    return raw
