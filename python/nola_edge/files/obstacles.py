"""What keeps a path from being replaced by ``--force``: that it is not what a command writes.

Each format has a test of its own. It returns what is in the way, for a message that begins with the
path: "holds notes.txt, which is not part of such an output". It returns None of what may be
replaced.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    #: Says what of a path keeps it from being replaced; None of one that may be.
    Obstacle = Callable[[Path], str | None]

_SPECIAL = {
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
    stat.S_IFIFO: "is a pipe",
    stat.S_IFSOCK: "is a socket",
}


def nothing_yet(path: Path) -> bool:
    """Tell whether a path is an empty folder or an empty regular file."""
    if path.is_dir():
        return not os.listdir(path)
    return path.is_file() and path.stat().st_size == 0


def special_file(path: Path) -> str | None:
    """Say that a path leads to a device, a pipe or a socket; None if it does not."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return _SPECIAL.get(stat.S_IFMT(mode), "is not a regular file")


def anything(path: Path) -> str | None:
    """Say that a path holds something, whatever it is."""
    if nothing_yet(path):
        return None
    return foreign(names_below(path)) if path.is_dir() else "is not empty"


def foreign(names: Collection[str]) -> str | None:
    """Say that a folder holds files which are not written; None where there are none."""
    if not names:
        return None
    more = " and more" * (len(names) > 1)
    return f"holds {printable(min(names))}{more}, which is not part of such an output"


def other_tensors(wanted: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Say that a file holds other tensors than an output.

    Parameters
    ----------
    wanted, found : mapping of str to str
        Tensor name -> what must be alike, as it is printed.
    """
    for name, kind in wanted.items():
        shown = f"tensor {printable(name)!r}"
        if name not in found:
            return f"lacks {shown}, which this output has"
        if found[name] != kind:
            return f"holds {shown} as {found[name]}, which this output has as {kind}"
    for name in found:
        if name not in wanted:
            return f"holds tensor {printable(name)!r}, which this output has not"
    return None


def names_below(folder: Path) -> list[str]:
    """Return every file below a folder, and the folders that are links or hidden."""
    found = []
    for place, folders, names in os.walk(folder):
        odd = [name for name in folders if Path(place, name).is_symlink() or name.startswith(".")]
        found += [str(Path(place, name).relative_to(folder)) for name in [*names, *odd]]
    return found
