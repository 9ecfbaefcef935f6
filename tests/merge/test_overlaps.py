"""Which tensors share memory, against every pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.merge.overlaps import array_extent, find_overlaps, have_common_element

extents = st.tuples(st.sampled_from(["cpu", "cuda:0"]), st.integers(0, 30), st.integers(1, 12)).map(
    lambda extent: (extent[0], extent[1], extent[1] + extent[2])
)


def overlap(one, other):
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


@given(st.lists(extents, max_size=12), st.sampled_from([2, 3, 100]))
def test_just_those_that_overlap_are_found(listed, modulus):
    """Of those whose extents overlap, those that have an element in common."""
    named = {str(i): extent for i, extent in enumerate(listed)}
    asked = []

    def allowed(one, other):
        return (int(one) + int(other)) % modulus != 0

    def have_common(one, other):
        asked.append((one, other))
        return allowed(one, other)

    found = find_overlaps(named, have_common)
    assert all(overlap(named[one], named[other]) for one, other in asked)
    for name, extent in named.items():
        others = {
            n for n, other in named.items()
            if n != name and overlap(extent, other) and allowed(n, name)
        }  # fmt: skip
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


@given(st.data())
def test_parts_of_one_array_have_a_common_element_or_not(data):
    whole = np.arange(48, dtype=np.float16).reshape(6, 8)
    bound = st.integers(0, 8)
    step = st.sampled_from([-3, -2, -1, 1, 2, 3])

    def part():
        index = tuple(slice(*sorted((data.draw(bound), data.draw(bound)))) for _ in "rc")
        return whole[index][:: data.draw(step), :: data.draw(step)]

    one, other = part(), part()
    expected = bool({*one.ravel().tolist()} & {*other.ravel().tolist()})
    assert have_common_element(one, other) == expected
