"""Tensors in memory that share some of it: whoever writes one of them changes the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Where a tensor lies: what kind of memory, its first byte, the byte after its last.
Extent: TypeAlias = tuple[str, int, int]


def array_extent(array: NDArray[Any]) -> Extent:
    """Return where an array's elements lie, whatever its strides."""
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    start = array.ctypes.data + sum(step for step in reach if step < 0)
    return "cpu", start, start + sum(map(abs, reach)) + array.itemsize


def find_overlaps(extents: Mapping[str, Extent]) -> dict[str, str]:
    """Find tensors that share memory.

    Parameters
    ----------
    extents : mapping from name to Extent
        Of tensors that hold something.

    Returns
    -------
    dict
        Name of each that overlaps another -> name of one that it overlaps.
    """
    found: dict[str, str] = {}
    furthest = ""
    for name in sorted(extents, key=lambda name: extents[name]):
        kind, start, stop = extents[name]
        if furthest and extents[furthest][0] == kind and start < extents[furthest][2]:
            found.setdefault(name, furthest)
            found.setdefault(furthest, name)
            if stop <= extents[furthest][2]:
                continue
        furthest = name
    return found
