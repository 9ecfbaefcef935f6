"""The numbers of ``torch.normal`` on a CPU, near enough to recognise them.

The engine is MT19937, seeded by ``init_genrand`` with the lower 32 bits of the seed. From 16
elements on, each block of 16 is made of 16 float32 numbers of the unit interval, 24 bits each: the
first eight give the radii, the others the angles, of Box and Muller's method; an incomplete block
at the end is drawn anew as the last 16 elements. Fewer elements are drawn pair by pair from numbers
of 53 bits (``aten/src/ATen/native/cpu/DistributionTemplates.h``). Logarithms and sines are the
machine's, so that last bits may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 16


def standard_normal(seed: int, size: int) -> NDArray[np.float64]:
    """Return ``torch.normal(0.0, 1.0, (size,), generator=Generator().manual_seed(seed))``.

    Parameters
    ----------
    seed : int
        ``0 <= seed < 2**64``.
    size : int

    Returns
    -------
    (size,) float64
        Within some units in the last place of float32 of what torch gives.
    """
    words = np.random.RandomState(seed & 0xFFFFFFFF)  # numpy promises never to change this stream
    return _few(words, size) if size < _BLOCK else _many(words, size)


def _many(words: np.random.RandomState, size: int) -> NDArray[np.float64]:
    values = _unit(words, size)
    whole = size // _BLOCK * _BLOCK
    values[:whole] = _box_muller(values[:whole])
    if whole < size:
        values[-_BLOCK:] = _box_muller(_unit(words, _BLOCK))
    return values


def _unit(words: np.random.RandomState, size: int) -> NDArray[np.float64]:
    drawn = words.randint(0, 1 << 32, size=size, dtype=np.uint32)
    return (drawn & np.uint32(0xFFFFFF)).astype(np.float64) * 2.0**-24


def _box_muller(unit: NDArray[np.float64]) -> NDArray[np.float64]:
    radii, angles = np.moveaxis(unit.reshape(-1, 2, _BLOCK // 2), 1, 0)
    radii, angles = np.sqrt(-2 * np.log(1 - radii)), 2 * np.pi * angles
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).reshape(-1)


def _few(words: np.random.RandomState, size: int) -> NDArray[np.float64]:
    pairs = (size + 1) // 2
    high, low = words.randint(0, 1 << 32, size=(2 * pairs, 2), dtype=np.uint32).astype(np.uint64).T
    unit = ((high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)) * 2.0**-53
    angles, radii = 2 * np.pi * unit[0::2], np.sqrt(-2 * np.log1p(-unit[1::2]))
    both = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return np.asarray(both.reshape(-1)[:size])
