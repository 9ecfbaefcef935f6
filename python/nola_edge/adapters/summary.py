"""What can be said of an adapter of any method."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from nola_edge.adapters.base import LowRankAdapter


def summary(adapter: LowRankAdapter) -> dict[str, Any]:
    """Return what an adapter is, ready for JSON.

    Returns
    -------
    dict
        ``path``, ``method``, ``bytes`` of its files, ``modules`` (name -> rank, scaling, shape,
        whether it is an embedding), ``parameters`` in factors of fixed shape, ``whole_tensors``,
        ``added_biases``, ``fan_in_fan_out``, ``base_fingerprint``.
    """
    path = adapter.path or Path()
    files = path.iterdir() if path.is_dir() else [path]
    modules = {name: _module(adapter, name) for name in adapter.modules}
    return {
        "path": str(path),
        "method": adapter.method,
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "modules": modules,
        "parameters": sum(m["rank"] * sum(m["shape"] or ()) for m in modules.values()),
        "whole_tensors": list(adapter.whole_tensors),
        "added_biases": list(adapter.added_biases),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "base_fingerprint": adapter.base_fingerprint,
    }


def _module(adapter: LowRankAdapter, name: str) -> dict[str, Any]:
    return {
        "rank": adapter.rank(name),
        "scaling": adapter.scaling_of(name),
        "shape": adapter.shape(name),
        "embedding": adapter.is_embedding(name),
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) of a :func:`summary`, for people; the path and modules' names apart."""
    modules = found["modules"].values()
    lines = [
        ("method", found["method"]),
        ("factors", f"rank {_counted(m['rank'] for m in modules)}"),
        ("scaling", _counted(f"{m['scaling']:g}" for m in modules)),
    ]
    if found["parameters"]:
        lines.append(("parameters", f"{found['parameters']:,}"))
    embeddings = sum(m["embedding"] for m in modules)
    if embeddings:
        lines.append(("embeddings", f"{embeddings} of {len(modules)} modules"))
    for label, names in (
        ("whole tensors", found["whole_tensors"]),
        ("added biases", found["added_biases"]),
    ):
        if names:
            lines.append((label, f"{len(names)}: {', '.join(names)}"))
    return lines


def _counted(values: Iterable[Hashable]) -> str:
    """Name a value, or each of several with how often it is there, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return str(counts[0][0])
    return ", ".join(f"{value} ({count})" for value, count in counts)
