"""Locks on folders that threads and processes share, released when the holder ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def try_lock(folder: Path, *, shared: bool) -> int | None:
    """Lock a folder, or return None if it is not there or is locked otherwise.

    Returns
    -------
    int or None
        A file descriptor; closing it gives the lock back. Two descriptors of one process exclude
        each other as two processes do.

    Raises
    ------
    OSError
        If that cannot be told: no descriptor is free, say, or the file system knows no such locks.
    """
    try:
        fd = os.open(folder, _FOLDER)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return None
        raise
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if is_at(fd, folder):
        return fd
    os.close(fd)  # it was moved away between the two
    return None


def is_at(fd: int, folder: Path) -> bool:
    """Tell whether a descriptor's folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(folder))
    except OSError:
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder to oneself, after waiting for whoever has it.

    Raises
    ------
    OSError
        If the folder is not there, or its file system knows no such locks.
    """
    fd = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
