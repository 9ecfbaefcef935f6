"""Names for the outputs of many adapters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.belongs import location
from nola_edge.errors import ArgumentError, printable
from nola_edge.files.hub import repository
from nola_edge.merge.plan import load_adapters

#: What file systems allow, less the suffix of a file.
_LONGEST = 255 - len(".safetensors")
_ADVICE = "link to it under another name, or in Python give a mapping {name: adapter}"


def name_outputs(adapters: Any) -> dict[str, Any]:
    """Give each adapter's output a name, without reading the adapters.

    Parameters
    ----------
    adapters : sequence or mapping
        As for :func:`nola_edge.merge_each`.

    Returns
    -------
    dict
        Name -> what :func:`~nola_edge.merge.plan.load_adapters` takes, in the order given.

    Raises
    ------
    ArgumentError
        If there is no adapter, or a name is not plain or given twice.
    """
    if isinstance(adapters, Mapping):
        items = list(adapters.items())
    else:
        alone = isinstance(adapters, str | Path | LowRankAdapter) or not isinstance(
            adapters, Iterable
        )
        items = [(_name(item), item) for item in ([adapters] if alone else adapters)]
    named: dict[str, Any] = {}
    for name, item in items:
        if not _is_plain(name):
            raise ArgumentError(
                f"{printable(repr(name))} is not a plain name for an output; {_ADVICE}",
                file=_label(item),
                field="name",
                value=name,
            )
        if name in named:
            raise ArgumentError(
                f"{printable(_label(named[name]))} and {printable(_label(item))} would both be "
                f"written to {printable(name)!r}; rename one, {_ADVICE}",
                field="adapters",
                value=name,
            )
        named[name] = item
    if not named:
        raise ArgumentError("at least one adapter is needed", field="adapter")
    return {name: item if isinstance(item, list) else [item] for name, item in named.items()}


def _adapter(item: Any) -> Any:
    return item[0] if isinstance(item, tuple) and item else item


def _label(item: Any) -> str:
    adapter = _adapter(item)
    return str(location(adapter) if isinstance(adapter, LowRankAdapter) else adapter)


def _name(item: Any) -> str:
    """Return the name of an adapter's folder, the stem of its file, or the end of its Hub id."""
    adapter = _adapter(item)
    if isinstance(adapter, LowRankAdapter):
        if adapter.path is None:
            raise ArgumentError(
                "an adapter made in memory has no name; give a mapping {name: adapter}",
                field="adapters",
            )
        adapter = adapter.path
    if not isinstance(adapter, str | Path):
        load_adapters([item])  # says what is wrong with it
    if isinstance(adapter, str) and not os.path.exists(adapter):
        adapter = repository(adapter)
    path = Path(os.path.abspath(adapter))
    if path.is_file():
        return path.stem
    if path.parent.name == "snapshots":  # a download of the Hub's, named by its commit
        return path.parent.parent.name.rpartition("--")[2]
    return path.name


def _is_plain(name: object) -> bool:
    """Tell whether a name is one folder's on any system, visible, and short enough."""
    return (
        isinstance(name, str)
        and name != ""
        and name.isprintable()
        and not name.startswith(".")
        and not any(c in name for c in "/\\")
        and len(os.fsencode(name)) <= _LONGEST
    )
