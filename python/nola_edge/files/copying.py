"""Bytes from file to file, within the kernel where it can."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING

from nola_edge.errors import ChangedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Kernels and file systems refuse copies of their own in many words.
_NO_KERNEL_COPY = (
    errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM,
    errno.EBADF, errno.ETXTBSY,
)  # fmt: skip
_COPY_BUFFER = 1 << 20
BECAME_SHORTER = "became shorter while it was read; run again when nothing writes to it"


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


_SYNC_FILE_RANGE_WRITE = 2


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def start_writeback(fd: int, offset: int, count: int) -> None:
    """Let the disk begin with bytes just written, so that the final fsync has less to wait for.

    A hint (Linux's sync_file_range), without effect on what is promised.
    """
    function = _sync_file_range()
    if function is not None:
        function(fd, offset, count, _SYNC_FILE_RANGE_WRITE)


def copy_range(source: int, start: int, target: int, offset: int, count: int) -> None:
    """Copy bytes between file descriptors, within the kernel where it can.

    Parameters
    ----------
    source, target : int
        File descriptors.
    start, offset : int
        Positions in source and target.
    count : int
        Bytes.

    Raises
    ------
    EOFError
        If the source ends early.
    OSError
        If writing fails.
    """
    done = 0
    kernel = hasattr(os, "copy_file_range")
    while done < count:
        if kernel:
            copied = _copy_in_kernel(source, start + done, target, offset + done, count - done)
            kernel = copied > 0
        else:
            block = os.pread(source, min(_COPY_BUFFER, count - done), start + done)
            if not block:
                raise EOFError
            pwrite_all(target, block, offset + done)
            copied = len(block)
        done += copied


def _copy_in_kernel(source: int, start: int, target: int, offset: int, count: int) -> int:
    """Return how many bytes were copied; 0 where the kernel cannot, or does not say why not."""
    try:
        return os.copy_file_range(source, target, count, start, offset)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        return 0


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content; the copy gets the mode of a new file.

    Raises
    ------
    ChangedError
        If the file becomes shorter meanwhile.
    OSError
        If writing fails.
    """
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            copy_range(read, 0, write, 0, os.fstat(read).st_size)
        except EOFError:
            raise ChangedError(BECAME_SHORTER, file=source) from None
        finally:
            os.close(write)
    finally:
        os.close(read)
