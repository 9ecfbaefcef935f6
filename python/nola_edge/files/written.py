"""What was written into an output, so that nothing else is ever published in its place."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import OutputError, printable
from nola_edge.files.mounts import keeps_inodes
from nola_edge.files.obstacles import names_below

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What some file systems say of a folder's fsync; they order its entries themselves, or never.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES)
#: FAT keeps times to two seconds.
_TIME_GRAIN = 2_000_000_000


class Written:
    """The files of an output, each as it was when its last byte had been written.

    A tidy-up job, or another machine on a shared file system, may remove a temporary under the
    hands of its writer. So nothing is published before every file that was written is found again:
    under its name, of its size, and with its inode. Where a file system makes up inodes as it
    goes (:mod:`nola_edge.files.mounts`), the time of its last change must be the same instead.

    Parameters
    ----------
    root : Path
        The folder, or the file, that is written. A folder is there, and is never made again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, os.stat_result] = {}
        self._by_inode = True

    @contextlib.contextmanager
    def file(self, name: str = "") -> Iterator[Path]:
        """Give the path of a new file; on leaving, take note of what has been written there.

        Parameters
        ----------
        name : str
            Relative to the root, in folders that are made; empty: the root is the file.
        """
        if not self._files:
            self._by_inode = keeps_inodes(self._root.parent)
        path = self._root
        for folder in Path(name).parts[:-1]:
            path = path / folder
            with contextlib.suppress(FileExistsError):
                path.mkdir()
        path = self._root / name
        yield path
        try:
            self._files[name] = os.lstat(path)
        except FileNotFoundError:
            raise self._lost(name) from None

    def sync(self) -> None:
        """Force all to disk: the files, then the folders from the leaves up.

        Raises
        ------
        OutputError
            If something is not there as it was written.
        """
        for name, status in self._files.items():
            self._sync_file(name, status)
        if self._root.is_dir():
            for folder, _, _ in os.walk(self._root, topdown=False):
                sync_folder(Path(folder))

    def check(self, root: Path) -> None:
        """Look for every file below the root, wherever that has been moved to.

        Raises
        ------
        OutputError
            If something is not there as it was written.
        """
        if not os.path.lexists(root):
            raise self._lost("")
        for name, status in self._files.items():
            try:
                now = os.lstat(root / name)
            except OSError:
                raise self._lost(name) from None
            if not self._same(now, status):
                raise self._lost(name)

    def holds_nothing_else(self, root: Path) -> bool:
        """Tell whether whatever stands at a path is of what was written."""
        names = names_below(root) if root.is_dir() else [""]
        return all(
            name in self._files and self._same(os.lstat(root / name), self._files[name])
            for name in names
        )

    def _sync_file(self, name: str, status: os.stat_result) -> None:
        path = self._root / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise self._lost(name) from None
        try:
            if not self._same(os.fstat(fd), status):
                raise self._lost(name)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _same(self, now: os.stat_result, then: os.stat_result) -> bool:
        if self._by_inode:
            return (now.st_size, now.st_ino) == (then.st_size, then.st_ino)
        same_time = abs(now.st_mtime_ns - then.st_mtime_ns) <= _TIME_GRAIN
        return now.st_size == then.st_size and same_time

    def _lost(self, name: str) -> OutputError:
        place = self._root.parent.parent
        return OutputError(
            "was written, but is now gone or another file, so nothing was published; run again, "
            f"and keep whatever cleans up {printable(place)} away from .nola-edge-*",
            file=self._root / name,
        )


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, where its file system can be told to.

    Raises
    ------
    OSError
        If the disk fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder to drop files in, which may not be read
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)
