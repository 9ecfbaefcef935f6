"""A file opened read-only, that notices when it changes while it is read.

Bytes are read with ``pread`` where they are worked on (a file truncated meanwhile gives an error,
not a SIGBUS), and mapped only where they are handed out as they are.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nola_edge.errors import ArgumentError, ChangedError, FormatError
from nola_edge.files.copying import BECAME_SHORTER, copy_range

if TYPE_CHECKING:
    from collections.abc import Iterator

Identity = tuple[int, int, int, int]


@contextlib.contextmanager
def opening(path: str | Path) -> Iterator[None]:
    """Refuse what the system does not let us open or read.

    Parameters
    ----------
    path : path
        Named in the error, where the system does not name another.

    Raises
    ------
    FormatError
        In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        done = "read" if error.filename is None else "opened"
        advice = "; close some, or raise the limit (ulimit -n)" * (error.errno == errno.EMFILE)
        raise FormatError(
            f"cannot be {done}: {error.strerror}{advice}", file=error.filename or path
        ) from None


def open_to_read(path: str | Path) -> int:
    """Open a file, which may be anything; never wait for the other end of a FIFO.

    Raises
    ------
    FormatError
        If it cannot be opened.
    """
    with opening(path):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def is_here(path: str | Path) -> bool:
    """Tell whether there is something at a path, behind links.

    Raises
    ------
    FormatError
        If a folder on the way may not be searched, so that nobody can tell.
    """
    with opening(path):
        try:
            os.stat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        except ValueError:  # a zero byte in it
            return False
    return True


class Source(Protocol):
    """What stored bytes are read from: a file, or a part of one."""

    @property
    def path(self) -> Path:
        """Return the path of the file, for errors."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset."""


class InputFile:
    """A regular file, opened read-only.

    Attributes
    ----------
    path : Path
    size : int
        Bytes of the file.
    fd : int
        File descriptor, for copies within the kernel.

    Raises
    ------
    FormatError
        If it cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.fd = open_to_read(self.path)
        # Closed with the object at the latest: not everybody closes what they open lazily.
        self._close = weakref.finalize(self, os.close, self.fd)
        self._map: mmap.mmap | None = None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise FormatError("is not a regular file", file=self.path)
        self.size = status.st_size
        self._identity = identity(status)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset in the file.

        Raises
        ------
        ChangedError
            If the file has become shorter.
        FormatError
            If the disk fails.
        ArgumentError
            If the file was closed, here and by every other method that reads.
        """
        self._check_open()
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                raise FormatError(f"cannot be read: {error.strerror}", file=self.path) from None
            if count == 0:
                raise ChangedError(BECAME_SHORTER, file=self.path)
            done += count

    def read_bytes(self, count: int, offset: int) -> bytes:
        """Return bytes from an offset in the file.

        Raises
        ------
        ChangedError, FormatError
            As for :meth:`read_into`.
        """
        with contextlib.suppress(OSError):  # said below
            data = os.pread(self.fd, count, offset)
            if len(data) == count:
                return data
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def copy_to(self, fd: int, start: int, offset: int, count: int) -> None:
        """Copy bytes from `start` on to an offset of a file descriptor, within the kernel.

        Raises
        ------
        ChangedError
            If the file has become shorter.
        OSError
            If writing fails.
        """
        self._check_open()
        try:
            copy_range(self.fd, start, fd, offset, count)
        except EOFError:
            raise ChangedError(BECAME_SHORTER, file=self.path) from None

    def mapped(self) -> mmap.mmap:
        """Return the whole file, mapped read-only; arrays of it keep it alive."""
        if self._map is None:
            self.check_unchanged()
            self._map = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
        return self._map

    def check_unchanged(self, *, by_path: bool = True) -> None:
        """Compare size, modification time and inode with those at opening.

        Parameters
        ----------
        by_path : bool
            Of the path too, which may be another file's by now.

        Raises
        ------
        ChangedError
        """
        self._check_open()
        try:
            now = {identity(os.fstat(self.fd))}
            if by_path:
                now.add(identity(os.stat(self.path)))
        except OSError as error:
            raise ChangedError(
                f"disappeared in the meantime: {error.strerror}", file=self.path
            ) from None
        if now != {self._identity}:
            raise ChangedError(
                "changed while it was read; run again when nothing writes to it", file=self.path
            )

    def _check_open(self) -> None:
        if self.fd < 0:
            raise ArgumentError("was closed; open it again", file=self.path)

    def close(self) -> None:
        """Close the file; arrays handed out stay valid, since they hold the mapping."""
        self._close()
        self.fd = -1
        self._map = None


def identity(status: os.stat_result) -> Identity:
    """Return what tells a file, and that it is unchanged: device, inode, size, time."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
