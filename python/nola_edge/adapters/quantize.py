"""Coefficients in few bits: symmetric, one fp32 scale per tensor, packed as a stream of bits.

With b bits, q is an integer in ``-(2**(b-1) - 1) .. 2**(b-1) - 1`` and stands for ``scale * q``.
The scale is ``max |c| / (2**(b-1) - 1)``, divided in fp32 and then rounded to nearest even to 16
significant bits; q is ``c / scale``, divided in fp32 and rounded to nearest even. A scale of 16
bits makes every ``scale * q`` exact, so that quantising dequantised values changes nothing. A scale
that is not a normal number, below 2**-126, counts as zero, and so do its coefficients.

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


class Quantized(NamedTuple):
    """The coefficients of one factor of one module in few bits.

    Attributes
    ----------
    packed : (ceil(k * bits / 8),) uint8
    scale : numpy.float32
        Not negative.
    """

    packed: NDArray[np.uint8]
    scale: np.float32


def check_bits(bits: int) -> int:
    """Return a supported number of bits; refuse any other."""
    if type(bits) is not int or bits not in BITS:
        raise ArgumentError(f"must be one of {', '.join(map(str, BITS))}", field="bits", value=bits)
    return bits


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes hold so many numbers."""
    return (count * bits + 7) // 8


def quantize(values: NDArray[np.float32], bits: int) -> Quantized:
    """Round coefficients to few bits.

    Quantising what :func:`dequantize` gave returns the same bytes.

    Parameters
    ----------
    values : (k,) float32
        Finite.
    bits : {3, 4, 8}

    Returns
    -------
    Quantized

    Raises
    ------
    ArgumentError
        If `bits` is not supported.
    """
    largest = (1 << (check_bits(bits) - 1)) - 1
    values = np.asarray(values, np.float32)
    scale = round_scale(np.float32(np.abs(values).max(initial=0)) / np.float32(largest))
    if scale < SMALLEST_SCALE:
        scale = np.float32(0)
    steps = np.rint(values / (scale if scale > 0 else np.float32(1)))
    integers = np.clip(steps, -largest, largest).astype(np.int16) + (1 << (bits - 1))
    return Quantized(pack_bits(integers, bits), scale)


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
    values = ops.scaled(integers.astype(np.float32), float(quantized.scale))
    if not np.isfinite(values).all():
        raise ValueError("holds a coefficient that overflows")
    return values


def rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return coefficients as so many bits hold them."""
    return dequantize(quantize(values, bits), len(values), bits)


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
