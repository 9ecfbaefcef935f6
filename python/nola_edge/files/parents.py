"""The folders on the way to an output: made where they are missing, gone if it never comes.

Several may write into the same new folder at once. Who fails cannot remove it while another's
temporary is there, and so leaves a note in that one; who fails last removes what is empty then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nola_edge.errors import OutputError, printable
from nola_edge.files.temporary import is_temporary
from nola_edge.files.written import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

#: Others who fail may remove what was just made; nobody is so unlucky so often.
_TRIES = 100
#: Seconds; time for one who has just made a folder to make its temporary there.
_PAUSE = 0.001
#: Begins the name of a note in a neighbour's temporary: a folder so many levels up was made by one
#: who has failed, and is to be removed by the last who fails.
_NOTE = "made-"
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def nearest_folder(path: Path) -> Path:
    """Return a folder, or the nearest one on the way to it that is there.

    Raises
    ------
    OutputError
        If something else is in the way.
    """
    for place in (path, *path.parents):
        try:
            mode = os.lstat(place).st_mode  # one look: others may make and remove it between two
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            continue
        if stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and place.is_dir()):
            return place
        what = "a broken link" if stat.S_ISLNK(mode) else "not a folder"
        raise OutputError(f"{printable(place)} is {what}; choose another name", file=path)
    return path


def _retried(action: Callable[[], _T]) -> _T:
    """Do what fails where others remove a folder in the middle of it."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return action()
    return action()


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk on which a folder is, or would be.

    Raises
    ------
    OSError
    """
    return _retried(lambda: shutil.disk_usage(nearest_folder(folder)).free)


class Parents:
    """Makes a folder and those above it, and knows which were missing.

    Parameters
    ----------
    folder : Path
        Absolute.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []
        self._kept = False

    def make(self) -> None:
        """Make what is missing; other processes may make the same, and remove it again.

        Raises
        ------
        OSError
        """
        _retried(self._make_missing)

    def make_around(self, temporary: Path) -> None:
        """Make what is missing, and a private folder in it.

        Raises
        ------
        OSError
        """

        def make() -> None:
            self._make_missing()
            temporary.mkdir(mode=0o700)

        _retried(make)

    def _make_missing(self) -> None:
        missing = [place for place in (self._folder, *self._folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            self._made.append(place)  # known before it is made: a signal may come right after
            try:
                place.mkdir()
            except FileExistsError:
                self._made.pop()
            except OSError:
                self._made.pop()
                raise

    def sync(self) -> None:
        """Force the entries of what was made to disk.

        Raises
        ------
        OSError
        """
        for place in self._made:
            sync_folder(place.parent)

    def keep(self) -> None:
        """Leave what was made where it is."""
        self._kept = True

    def remove(self, temporary: Path) -> None:
        """Remove a temporary, and take over what the notes in it say that others had made.

        Raises
        ------
        OSError
            If it is gone already.
        """
        for _ in range(_TRIES):
            for path in temporary.iterdir():
                if path.name.startswith(_NOTE):
                    self._made.append(self._above(int(path.name.removeprefix(_NOTE))))
                _remove_whole(path)
            with contextlib.suppress(OSError):  # one more note has come
                temporary.rmdir()
                return

    def undo(self) -> None:
        """Remove what was made, as far as it is empty; tell others who write there of the rest."""
        if self._kept:
            return
        for _ in range(_TRIES):
            left = self._remove_empty()
            if not left or self._is_told(left):
                return
            time.sleep(_PAUSE)

    def _remove_empty(self) -> list[Path]:
        """Return what is left of what was made."""
        deepest_first = sorted(set(self._made), key=lambda place: len(place.parts), reverse=True)
        for place in deepest_first:
            with contextlib.suppress(OSError):
                place.rmdir()
        return [place for place in deepest_first if place.is_dir()]

    def _is_told(self, left: list[Path]) -> bool:
        """Leave notes of folders to all who write there; false if one has just come or gone."""
        levels = [len(self._folder.parts) - len(place.parts) for place in left]
        try:
            names = os.listdir(self._folder)
            for neighbour in filter(is_temporary, names):
                for level in levels:
                    (self._folder / neighbour / f"{_NOTE}{level}").touch()
            return bool(names)
        except FileNotFoundError:
            return False
        except OSError:  # another user's
            return True

    def _above(self, level: int) -> Path:
        return (self._folder, *self._folder.parents)[level]


def _remove_whole(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
