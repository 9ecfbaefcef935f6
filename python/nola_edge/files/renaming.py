"""Renames that lose nothing, on file systems of every kind.

Linux has one that never overwrites and one that exchanges two names. Where a file system lacks
them, a hard link never overwrites either; where it lacks that too (FAT, many FUSE file systems), a
look before a plain rename remains.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
#: EXDEV is what overlayfs says of folders of its lower layers. A plain call says what is wrong
#: where it is something else.
_UNSUPPORTED = (
    errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV,
    errno.EMLINK,
)  # fmt: skip
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


def rename_new(source: Path, target: Path) -> bool:
    """Rename unless the target exists; return whether it was done.

    Raises
    ------
    OSError
    """
    links: list[Callable[[Path, Path], None]] = [] if source.is_dir() else [_rename_by_link]
    ways = [_rename_flagged, *links, _rename_after_a_look]
    for way in ways:
        try:
            way(source, target)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            if way is ways[-1] or error.errno not in _UNSUPPORTED:
                raise
        else:
            break
    return True


def _rename_flagged(source: Path, target: Path) -> None:
    _renameat2(source, target, _RENAME_NOREPLACE)


def _rename_by_link(source: Path, target: Path) -> None:
    os.link(source, target)
    os.unlink(source)


def _rename_after_a_look(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)  # which itself refuses to replace a folder that is not empty


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return whether the file system can.

    Raises
    ------
    OSError
    """
    try:
        _renameat2(one, other, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename with flags, by the C library's renameat2 (Linux).

    Raises
    ------
    OSError
        ENOSYS where the C library lacks it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
