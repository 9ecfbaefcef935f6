"""Which factors are kept from one merge to the next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nola_edge.merge.kept_factors import KeptFactors


def factor(value, size=10):
    return np.full((1, size), value, np.float32)


def never():
    raise AssertionError("was to be kept")


def test_nothing_is_computed_twice_while_it_fits():
    kept = KeptFactors(80)
    first = kept.get("a", lambda: factor(1))
    assert kept.get("a", never) is first
    assert kept.nbytes == 40
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 2


def test_the_longest_unused_makes_room_for_the_next_merge():
    kept = KeptFactors(80)
    for key in ("a", "b"):
        kept.get(key, lambda: factor(1))
    kept.begin()
    kept.get("a", never)
    kept.get("c", lambda: factor(3))
    kept.begin()
    kept.get("a", never)
    kept.get("c", never)
    assert kept.get("b", lambda: factor(9))[0, 0] == 9


def test_a_merge_pushes_out_none_of_its_own():
    """Else one that is too large would push out the first by its last, and find nothing kept."""
    kept = KeptFactors(80)
    for _ in range(3):
        kept.begin()
        kept.get("a", lambda: factor(1))
        kept.get("b", lambda: factor(2))
        kept.get("c", lambda: factor(3))
    kept.begin()
    kept.get("a", never)
    kept.get("b", never)
    assert kept.nbytes == 80


def test_what_is_larger_than_all_room_is_only_computed():
    kept = KeptFactors(39)
    assert kept.get("a", lambda: factor(1))[0, 0] == 1
    assert kept.get("a", lambda: factor(2))[0, 0] == 2
    assert kept.nbytes == 0


def test_threads_agree_about_what_is_kept():
    kept = KeptFactors(4000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: kept.get(n % 7, lambda: factor(n % 7)), range(700)))
    assert all((array == n % 7).all() for n, array in enumerate(found))
    assert kept.nbytes == 7 * 40
