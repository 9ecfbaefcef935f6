"""Find an adapter by a name that a stranger chose: whoever may send the server a request."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nola_edge.errors import ArgumentError, printable
from nola_edge.files.paths import inside

if TYPE_CHECKING:
    from pathlib import Path

#: A packed adapter is found with or without it.
SUFFIX = ".nola"


def check_name(name: str) -> None:
    """Refuse what is not the plain name of a visible file.

    Raises
    ------
    ArgumentError
        If the name is empty or hidden, or holds a separator or what cannot be printed.
    """
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise ArgumentError(
            f"{printable(name)!r} is not the plain name of an adapter", field="lora_name"
        )


def find_adapter(folder: Path, name: str) -> Path | None:
    """Return the adapter of a name: a folder or a packed file right in `folder`.

    Parameters
    ----------
    folder : Path
    name : str
        As the folder or file is called; the ``.nola`` of a packed file may be left out.

    Returns
    -------
    Path or None
        None if nothing has that name.

    Raises
    ------
    ArgumentError
        If the name is not a plain one.
    CheckpointError
        If it is a link that leads out of `folder`, or nowhere.
    """
    check_name(name)
    for candidate in (name, name + SUFFIX):
        if os.path.lexists(folder / candidate):
            return inside(folder, candidate)
    return None
