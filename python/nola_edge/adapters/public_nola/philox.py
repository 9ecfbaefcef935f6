"""Philox4x32-10 over arrays of counters (Salmon et al., SC'11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 10
_FIRST = np.uint64(0xD2511F53)
_SECOND = np.uint64(0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox_words(counter: tuple[Any, Any, Any, Any], key: int) -> NDArray[np.uint32]:
    """Return the four words of each counter, (4, n) uint32.

    Parameters
    ----------
    counter : four integers or (n,) integer arrays
        Words of the counters, the lowest first, each in ``0 .. 2**32 - 1``.
    key : int
        ``0 <= key < 2**64``.
    """
    zero, one, two, three = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        first, second = zero * _FIRST, two * _SECOND
        zero = (second >> _HALF) ^ one ^ np.uint64(low)
        two = (first >> _HALF) ^ three ^ np.uint64(high)
        one, three = second & _LOW, first & _LOW
        low, high = ((k + s) & 0xFFFFFFFF for k, s in zip((low, high), _KEY_STEPS, strict=True))
    return np.stack([np.atleast_1d(w).astype(np.uint32) for w in (zero, one, two, three)])
