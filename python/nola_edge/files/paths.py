"""Files of a folder, and nothing outside it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING

from nola_edge.errors import CheckpointError, FormatError, printable
from nola_edge.files.input_file import open_to_read, opening
from nola_edge.files.strict_json import MAX_CONFIG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_LISTED = 4


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder; refuse links that lead out of it.

    The Hugging Face cache's own links, from ``snapshots/<revision>`` and what lies below it to the
    repository's ``blobs``, are followed.

    Parameters
    ----------
    folder : Path
    name : str
        Relative to the folder.

    Raises
    ------
    CheckpointError
        If there is no such file, or it lies elsewhere.
    FormatError
        If that cannot be found out.
    """
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except PermissionError as error:
        raise FormatError(f"cannot be opened: {error.strerror}", file=path) from None
    except (OSError, RuntimeError):
        what = "is a broken link" if path.is_symlink() else "does not exist"
        raise CheckpointError(what, file=path) from None
    root = folder.resolve()
    if not (target.is_relative_to(root) or target.parent in _blobs(root)):
        raise CheckpointError(
            f"is a link that leads out of the folder, to {printable(target)}; put the file itself "
            "there",
            file=path,
        )
    return path


def _blobs(folder: Path) -> list[Path]:
    """Return where the Hugging Face cache keeps the files of a folder in it, links resolved.

    ``blobs`` holds files and no folders; it may be a link itself, to a larger disk say.
    """
    revisions = [place for place in (folder, *folder.parents) if place.parent.name == "snapshots"]
    return [(revision.parent.parent / "blobs").resolve() for revision in revisions]


def in_hub_cache(folder: Path) -> bool:
    """Tell whether a folder is a snapshot in the Hugging Face cache, or lies in one."""
    places = (folder, *folder.parents)
    return any(
        place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--")
        for place in places
    )


def read_inside(folder: Path, name: str, most: int = MAX_CONFIG_BYTES) -> bytes:
    """Read a small file of a folder.

    Parameters
    ----------
    folder, name
        As for :func:`inside`.
    most : int
        Largest size in bytes.

    Raises
    ------
    CheckpointError
        If there is no such regular file of a credible size, or it lies elsewhere.
    FormatError
        If it cannot be read.
    """
    path = inside(folder, name)
    fd = open_to_read(path)
    with opening(path), os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a regular file", file=path)
        if status.st_size > most:
            raise CheckpointError(
                f"has {status.st_size} bytes, more than the limit of {most}", file=path
            )
        return file.read(status.st_size)


def cache_hint(folder: Path) -> str:
    """Say which folder holds a model, if this one is a repository in the Hugging Face cache."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return ""
    names = _names(str(snapshots))
    with contextlib.suppress(OSError, ValueError):
        main = (folder / "refs" / "main").read_text("ascii")[:40]
        names = [main] if main in names else names
    if not names:
        return ""
    newest = printable(snapshots / max(names), 400)
    return f"a repository of the Hugging Face cache; give one of its snapshots, such as {newest}"


def subfolders_with(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Return the names of the subfolders with a file of a wanted name, checkpoint-200 before -1000.

    Hidden ones and links are not looked into.
    """
    found = [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir(follow_symlinks=False)
        and not entry.name.startswith(".")
        and any(map(wanted, _names(entry.path)))
    ]
    return sorted(found, key=_by_number)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # this is for a hint only
        return []


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d{0,18})", name)]


def subfolders_hint(folder: Path, names: Sequence[str]) -> str:
    """Say, in the middle of a message, that subfolders have what a folder lacks."""
    shown = ", ".join((["…"] if len(names) > _LISTED else []) + list(names[-_LISTED:]))
    last = printable(folder / names[-1], 400)
    return f", but its subfolders do ({printable(shown)}); give one of them, such as {last}"
