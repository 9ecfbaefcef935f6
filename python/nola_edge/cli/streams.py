"""Standard streams that are closed or full, without spoiling what was done before it is told of."""

from __future__ import annotations

import errno
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
            written = super().write(data)  # type: ignore[arg-type]
            if written is not None:
                return written
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except BrokenPipeError:
            raise
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes  # type: ignore[arg-type]


class Stderr(io.FileIO):
    """Standard error's bytes; drops what cannot be written, as nobody can be told of it."""

    def write(self, data: object) -> int:
        """Write bytes, or drop them: also where a full pipe would have to be waited for."""
        nbytes = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            return nbytes
        return nbytes if written is None else written


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
    if not isinstance(text, io.TextIOWrapper) or (number := _descriptor(text)) is None:
        return None
    raw = Stdout(number, "w", closefd=False)
    sys.stdout = _over(raw, text)
    return raw


def replace_stderr() -> None:
    """Put a :class:`Stderr` below ``sys.stderr``, if that is a system file."""
    text = sys.stderr
    if isinstance(text, io.TextIOWrapper) and (number := _descriptor(text)) is not None:
        sys.stderr = _over(Stderr(number, "w", closefd=False), text)


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    """Return the descriptor of a stream; None if there is no system file behind it."""
    try:
        return stream.fileno()
    except OSError:
        return None


def _over(raw: io.FileIO, text: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a text stream over `raw` that is as `text` is; line by line if that is unbuffered.

    Without a buffer, what the system takes only in part would be lost.
    """
    text.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=text.encoding,
        errors=text.errors,
        line_buffering=text.line_buffering or text.write_through,
    )
