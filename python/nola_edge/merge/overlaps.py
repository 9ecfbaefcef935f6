"""Tensors in memory that share some of it: writing to one changes the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

#: Candidates to try before two arrays of intricate strides are taken to share an element.
_MAX_WORK: Any = 10_000  # numpy has it typed as two of its values

#: Where a tensor lies: what kind of memory, its first byte, the byte after its last.
Extent: TypeAlias = tuple[str, int, int]


def array_extent(array: NDArray[Any]) -> Extent:
    """Return where an array's elements lie, whatever its strides."""
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    start = array.ctypes.data + sum(step for step in reach if step < 0)
    return "cpu", start, start + sum(map(abs, reach)) + array.itemsize


def have_common_element(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two arrays share an element, or whether they do is too hard to tell.

    Columns of one matrix lie among each other and share none.
    """
    return np.may_share_memory(one, other, max_work=_MAX_WORK)


def find_overlaps(
    extents: Mapping[str, Extent], have_common: Callable[[str, str], bool]
) -> dict[str, str]:
    """Find tensors that share memory.

    Parameters
    ----------
    extents : mapping from name to Extent
        Of tensors that hold something.
    have_common : callable
        Tells of two names whose extents overlap whether the tensors have an element in common.

    Returns
    -------
    dict
        Name of each that shares an element with another -> one that it shares it with.
    """
    found: dict[str, str] = {}
    reaching: list[str] = []
    for name in sorted(extents, key=lambda name: extents[name]):
        kind, start, _ = extents[name]
        reaching = [n for n in reaching if extents[n][0] == kind and extents[n][2] > start]
        for other in reaching:
            if not (name in found and other in found) and have_common(name, other):
                found.setdefault(name, other)
                found.setdefault(other, name)
        reaching.append(name)
    return found
