"""The judge is judged first."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.testing.reference import fma32
from tests.reference.philox import philox4x32_10

PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
KNOWN = [
    (((0,) * 4, (0,) * 2), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("arguments", "words"), KNOWN)
def test_philox_known_answers(arguments, words):
    assert tuple(int(w) for w in philox4x32_10(*arguments)) == words


def test_philox_of_the_standard_library():
    """C++26's std::philox4x32, default seed: the 10000th value."""
    words = philox4x32_10((2499, 0, 0, 0), (20111115, 0))
    assert int(words[3]) == 1955073260


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(floats, floats, floats)
def test_fma_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = fma32(a, b, c)
    if not np.isfinite(got):
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    error = abs(Fraction(float(got)) - exact)
    for direction in (-np.inf, np.inf):
        near = np.nextafter(got, np.float32(direction))
        if np.isfinite(near):
            other = abs(Fraction(float(near)) - exact)
            assert error < other or (error == other and got.view(np.uint32) % 2 == 0)
