"""Coefficients in few bits: symmetric, one fp32 scale per tensor, packed as a stream of bits.

With b bits, q is an integer in ``-(2**(b-1) - 1) .. 2**(b-1) - 1`` and stands for ``scale * q``.
q is ``c / scale``, divided in fp32, rounded to nearest even and limited to these. Scales have 16
significant bits, which makes every ``scale * q`` exact. One that is not a normal number, below
2**-126, counts as zero, and so do its coefficients.

The largest integer may stand for the largest coefficient, or for less: a few coefficients that are
cut off cost less than coarse steps for all. :func:`fitted_scale` tries several ends and takes the
one with the least squared error. Of dequantised values that is the largest, with an error of zero,
so that quantising them changes nothing.

The first coefficient may be kept exact, apart from the others. That of alpha often is the largest
by far, as a fresh adapter has no other, and would make their steps coarse.

Stored is ``q + 2**(b-1)``, b bits each, the lowest bit of the first in the lowest bit of the first
byte, the last byte padded with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nola_edge import ops
from nola_edge.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = (3, 4, 8)
#: The least normal fp32 number.
SMALLEST_SCALE = np.float32(2.0**-126)
#: Where the largest integer may be, in sixteenths of the largest magnitude.
SIXTEENTHS = range(16, 5, -1)
#: Coefficients whose errors are in memory at once.
_CHUNK = 1 << 14


class Quantized(NamedTuple):
    """The coefficients of one factor of one module in few bits.

    Attributes
    ----------
    packed : (ceil(k * bits / 8),) uint8
    scale : (1,) or (2,) float32
        The scale, not negative; then the first coefficient, if that one is exact. Its integer is
        zero.
    """

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]


def check_bits(bits: int) -> int:
    """Return a supported number of bits; refuse any other."""
    if type(bits) is not int or bits not in BITS:
        raise ArgumentError(f"must be one of {', '.join(map(str, BITS))}", field="bits", value=bits)
    return bits


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes hold so many numbers."""
    return (count * bits + 7) // 8


def scale_size(exact_first: bool) -> int:
    """Return how many numbers go with packed coefficients."""
    return 2 if exact_first else 1


def quantize(values: NDArray[np.float32], bits: int, *, exact_first: bool = False) -> Quantized:
    """Round coefficients to few bits.

    Quantising what :func:`dequantize` gave returns the same bytes.

    Parameters
    ----------
    values : (k,) float32
        Finite.
    bits : {3, 4, 8}
    exact_first : bool
        Keep the first one as it is.

    Returns
    -------
    Quantized

    Raises
    ------
    ArgumentError
        If `bits` is not supported.
    """
    largest = (1 << (check_bits(bits) - 1)) - 1
    values = np.array(values, np.float32)
    first = values[: scale_size(exact_first) - 1].copy()
    values[: len(first)] = 0
    scale = fitted_scale(values, largest)
    integers = _steps(values, scale, largest).astype(np.int16) + (1 << (bits - 1))
    return Quantized(pack_bits(integers, bits), np.concatenate([np.array([scale]), first]))


def _steps(values: NDArray[np.float32], scale: np.float32, largest: int) -> NDArray[np.float32]:
    """Return coefficients as integers; all zeros have no scale, and any divisor gives zero."""
    steps: NDArray[np.float32] = np.rint(values / (scale or np.float32(1)))
    return steps.clip(-largest, largest)


def whole_scale(values: NDArray[np.float32], largest: int) -> np.float32:
    """Return the scale with which the largest integer stands for the largest magnitude."""
    return _normal(round_scale(np.abs(values).max(initial=0) / np.float32(largest)))


def fitted_scale(values: NDArray[np.float32], largest: int) -> np.float32:
    """Return the scale of the least squared error, the largest of several.

    Errors are summed as integers, in units of 2**-20 of a squared step: every order of summation,
    and so every device, gives the same.

    Parameters
    ----------
    values : (k,) float32
        Finite.
    largest : int
        2**(b-1) - 1.
    """
    whole = whole_scale(values, largest)
    ends = np.array([[end / 16] for end in SIXTEENTHS], np.float32)
    costs = np.zeros(len(ends), np.int64)
    for i in range(0, len(values), _CHUNK):
        steps = values[i : i + _CHUNK] / (whole or np.float32(1))
        errors = steps - np.rint(steps / ends).clip(-largest, largest) * ends
        costs += (errors * errors * np.float32(1 << 20)).astype(np.int64).sum(axis=1)
    return _normal(round_scale(whole * ends[costs.argmin(), 0]))


def _normal(scale: np.float32) -> np.float32:
    return scale if scale >= SMALLEST_SCALE else np.float32(0)


def round_scale(scale: np.float32) -> np.float32:
    """Round to 16 significant bits, to nearest even; finite, not negative."""
    bits = np.float32(scale).view(np.uint32)
    rounded = (bits + np.uint32(0x7F) + ((bits >> np.uint32(8)) & np.uint32(1))) & np.uint32(
        0xFFFFFF00
    )
    return np.uint32(rounded).view(np.float32)


def check_scale(scale: np.float32) -> np.float32:
    """Return a scale that an adapter may hold; refuse any other with a ValueError."""
    is_scale = SMALLEST_SCALE <= scale < np.inf and round_scale(scale) == scale
    if not is_scale and scale.view(np.uint32) != 0:  # the bits: flushed to zero, others compare so
        raise ValueError(f"has a scale of {scale!r}, which no quantised coefficients have")
    return scale


def dequantize(quantized: Quantized, count: int, bits: int) -> NDArray[np.float32]:
    """Return the values that packed coefficients stand for.

    Parameters
    ----------
    quantized : Quantized
    count : int
        k.
    bits : {3, 4, 8}

    Returns
    -------
    (k,) float32

    Raises
    ------
    ValueError
        If an integer is out of range, the padding is not zero, or a value overflows.
    """
    integers = unpack_bits(quantized.packed, count, bits) - (1 << (bits - 1))
    if (integers == -(1 << (bits - 1))).any():
        raise ValueError("holds the one integer that no coefficient has")
    scale, *first = quantized.scale
    if integers[: len(first)].any():
        raise ValueError("holds a first coefficient beside the exact one")
    values = ops.scaled(integers.astype(np.float32), float(check_scale(scale)))
    values[: len(first)] = first
    if not np.isfinite(values).all():
        raise ValueError("holds a coefficient that is not finite")
    return values


def rounded(
    values: NDArray[np.float32], bits: int, *, exact_first: bool = False
) -> NDArray[np.float32]:
    """Return coefficients as so many bits hold them."""
    return dequantize(quantize(values, bits, exact_first=exact_first), len(values), bits)


def fits(values: NDArray[np.float32], bits: int, *, exact_first: bool = False) -> bool:
    """Tell whether so many bits hold coefficients as they are.

    That is, whether :func:`rounded` changes nothing, found without a search for the scale.
    """
    largest = (1 << (bits - 1)) - 1
    rest = values[scale_size(exact_first) - 1 :]
    scale = whole_scale(rest, largest)
    return bool((_steps(rest, scale, largest) * scale == rest).all())


def pack_bits(integers: NDArray[np.int16], bits: int) -> NDArray[np.uint8]:
    """Write unsigned integers of `bits` bits one after the other, lowest bit first."""
    columns = (integers[:, None] >> np.arange(bits)) & 1
    return np.packbits(columns.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(packed: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int16]:
    """Undo :func:`pack_bits`; refuse padding that is not zero."""
    flat = np.unpackbits(packed, bitorder="little")
    if flat[count * bits :].any():
        raise ValueError("has bits set after the last coefficient")
    columns = flat[: count * bits].reshape(count, bits).astype(np.int16)
    integers: NDArray[np.int16] = (columns << np.arange(bits, dtype=np.int16)).sum(
        axis=1, dtype=np.int16
    )
    return integers
