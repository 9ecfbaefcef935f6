"""The folders on the way to an output: made where they are missing, gone if it never comes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nola_edge.errors import OutputError, printable
from nola_edge.written import sync_folder


def nearest_folder(path: Path) -> Path:
    """Return a folder, or the nearest one on the way to it that is there.

    Raises
    ------
    OutputError
        If something else is in the way.
    """
    for place in (path, *path.parents):
        there = os.path.lexists(place)  # before the next look: another may make it between them
        if place.is_dir():
            return place
        if there:
            what = "a link to nothing" if place.is_symlink() else "no folder"
            raise OutputError(f"{printable(place)} is {what}; choose another name", file=path)
    return path


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

    def make(self) -> None:
        """Make what is missing; another process may do the same.

        Raises
        ------
        OSError
        """
        missing = [place for place in (self._folder, *self._folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            self._made.append(place)  # known before it is made: a signal may come right after
            try:
                place.mkdir()
            except FileExistsError:
                self._made.pop()

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
        self._made.clear()

    def undo(self) -> None:
        """Remove what was made, as far as it is empty."""
        while self._made:
            with contextlib.suppress(OSError):
                self._made[-1].rmdir()
            self._made.pop()
