"""Adapters by name, of which there may be thousands: a path is read when it is asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge import arguments
from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.load import load_adapter
from nola_edge.errors import ArgumentError, printable
from nola_edge.files.hub import settled
from nola_edge.files.input_file import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.files.input_file import Identity

    #: Every file of a folder, with what tells that it is unchanged.
    Stamp = tuple[tuple[str, Identity], ...]

#: Adapters that were read and are kept, in case they are asked for again.
_MOST_READ = 8


class KnownAdapters:
    """Adapters, or paths of adapters, by name.

    The last few that were read from a path are kept as long as no file of theirs changes.
    """

    def __init__(self) -> None:
        self._known: dict[str, LowRankAdapter | str | Path] = {}
        self._read: OrderedDict[str, tuple[Stamp, LowRankAdapter]] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, name: str, adapter: LowRankAdapter | str | Path) -> None:
        """Make an adapter known under a name.

        Raises
        ------
        ArgumentError
            If the name is no string or taken, or the adapter neither an adapter nor a path.
        """
        arguments.text("name", name)
        if name in self._known:
            raise ArgumentError(f"{printable(name)} is the name of another adapter", field="name")
        if not isinstance(adapter, LowRankAdapter):
            arguments.path("adapter", adapter)
            adapter = settled(adapter)
        self._known[name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises
        ------
        ArgumentError
            If there is none of that name.
        """
        self._find(name)
        del self._known[name]
        self._read.pop(name, None)

    def load(self, name: str) -> LowRankAdapter:
        """Return an adapter, read from its path if it was not, or has changed.

        Raises
        ------
        ArgumentError
            If there is none of that name.
        NolaEdgeError
            If it cannot be read.
        """
        found = self._find(name)
        if isinstance(found, LowRankAdapter):
            return found
        stamp = _stamp(Path(found))  # before it is read: a later change is noticed the next time
        kept = self._read.pop(name, None)
        adapter = kept[1] if kept and kept[0] == stamp else load_adapter(found)
        if stamp:
            self._read[name] = stamp, adapter
        if len(self._read) > _MOST_READ:
            self._read.popitem(last=False)
        return adapter

    def _find(self, name: str) -> LowRankAdapter | str | Path:
        if name not in self._known:
            raise ArgumentError(
                f"{printable(repr(name))} is not known; add it first", field="adapter"
            )
        return self._known[name]


def _stamp(path: Path) -> Stamp:
    """Return what tells that nothing of an adapter changes; nothing for one on the Hub."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple((file.name, identity(os.stat(file))) for file in files)
    except OSError:
        return ()
