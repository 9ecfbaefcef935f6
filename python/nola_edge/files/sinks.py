"""Where the bytes of a result go, from several threads at once: into a file, or into a SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Protocol

from nola_edge.files.copying import pwrite_all, start_writeback
from nola_edge.pacing import check_stopped
from nola_edge.workers import Buffers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nola_edge.files.input_file import InputFile

#: Shorter runs, of which a window may have thousands, are left to the kernel's own time.
_WORTH_A_HINT = 1 << 18
#: How often a thread that waits for its turn looks whether it is still wanted.
_LOOK_SECONDS = 0.1


class Sink(Protocol):
    """Takes every byte of a file once, in pieces.

    Attributes
    ----------
    in_order : bool
        Whether pieces must be begun in the order of their offsets.
    copy_bytes : int
        Most that is copied at a time.
    """

    in_order: bool
    copy_bytes: int

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Take bytes that lie at an offset."""

    def copy(self, source: InputFile, begin: int, offset: int, count: int) -> None:
        """Take bytes of another file that lie at an offset in this one."""


class FileSink:
    """A file, in whatever order it is written."""

    in_order = False
    copy_bytes = 64 << 20

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        pwrite_all(self._fd, data, offset)
        if len(data) >= _WORTH_A_HINT:
            start_writeback(self._fd, offset, len(data))

    def copy(self, source: InputFile, begin: int, offset: int, count: int) -> None:
        """Copy bytes of another file within the kernel."""
        source.copy_to(self._fd, begin, offset, count)
        start_writeback(self._fd, offset, count)


@contextlib.contextmanager
def new_file(path: Path, nbytes: int) -> Iterator[FileSink]:
    """Make a file of so many bytes, to be written."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(fd, nbytes)
        yield FileSink(fd)
    finally:
        os.close(fd)


class HashSink:
    """The SHA-256 of a file that is never written.

    Each thread hashes its piece when it is the piece's turn, and waits until then; so nothing is
    kept but what threads work on. It is somebody's turn always, if pieces are begun in order.
    """

    in_order = True
    copy_bytes = 1 << 20

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._position = 0
        self._moved = threading.Condition()
        self._buffers = Buffers()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Hash bytes once all before them are hashed."""
        with self._moved:
            while self._position != offset:
                check_stopped()
                self._moved.wait(_LOOK_SECONDS)
        self._digest.update(data)  # nobody else's turn, and they need not wait to look
        with self._moved:
            self._position += len(data)
            self._moved.notify_all()

    def copy(self, source: InputFile, begin: int, offset: int, count: int) -> None:
        """Hash bytes of another file, which several threads read meanwhile."""
        buffer = self._buffers.get(count)
        source.read_into(buffer, begin)
        self.write(buffer, offset)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was written."""
        return self._digest.hexdigest()
