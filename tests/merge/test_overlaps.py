"""Which tensors share memory, against every pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.merge.overlaps import array_extent, find_overlaps

extents = st.tuples(st.sampled_from(["cpu", "cuda:0"]), st.integers(0, 30), st.integers(1, 12)).map(
    lambda extent: (extent[0], extent[1], extent[1] + extent[2])
)


def overlap(one, other):
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


@given(st.lists(extents, max_size=12))
def test_just_those_that_overlap_are_found(listed):
    named = {str(i): extent for i, extent in enumerate(listed)}
    found = find_overlaps(named)
    for name, extent in named.items():
        others = {n for n, other in named.items() if n != name and overlap(extent, other)}
        assert (name in found) == bool(others)
        assert name not in found or found[name] in others


@given(st.data())
def test_an_arrays_extent_covers_its_elements(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    step = st.sampled_from([-3, -2, -1, 1, 2])
    part = array[tuple(slice(None, None, data.draw(step)) for _ in shape)]
    kind, start, stop = array_extent(part)
    places = {int(value) * 4 for value in part.ravel()}
    offset = start - array.ctypes.data
    assert kind == "cpu"
    assert (offset, stop - start + offset) == (min(places), max(places) + 4)
