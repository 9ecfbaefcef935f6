"""The normative merge, slowly: one fused multiply-add for each rank, one rounding to the dtype.

Written from docs/basis-v1.md, and independent of what it judges. A fused multiply-add of float32 is
one of float64 with a sum rounded to odd: the product of two floats is exact in double, and if its
sum with a float is inexact and its last bit is even, it moves one unit towards the exact value.
Double has more than two bits beyond float's, so rounding such a sum to float is rounding the exact
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    #: B (out, r) and A (r, in) in float32, s in double.
    Product = tuple[NDArray[np.float32], NDArray[np.float32], float]


def fma32(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> NDArray[np.float32]:
    """Return fl32(a * b + c) elementwise for finite operands."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    part = total - product
    remainder = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(remainder > 0, np.inf, -np.inf)
    total = np.where((remainder != 0) & even, np.nextafter(total, towards), total)
    with np.errstate(over="ignore"):
        return np.asarray(total.astype(np.float32))


def merge(
    weight: NDArray[Any], b: NDArray[np.float32], a: NDArray[np.float32], scaling: float
) -> NDArray[Any]:
    """Return round(weight + scaling * b @ a) for a float32, float16 or bfloat16 matrix."""
    total = np.zeros(weight.shape, np.float32)
    for j in range(a.shape[0]):
        total = fma32(b[:, j : j + 1], a[j : j + 1, :], total)
    merged = fma32(np.float32(scaling), total, weight.astype(np.float32))
    return np.asarray(merged.astype(weight.dtype))


def together(products: Iterable[tuple[Product, float]]) -> Product:
    """Return the one product that several with weights are: each B is multiplied beforehand."""
    parts = [(b * np.float32(weight * s), a) for (b, a, s), weight in products]
    bs, as_ = zip(*parts, strict=True)
    return np.concatenate(bs, axis=1), np.concatenate(as_), 1.0


def merge_stored(weight: NDArray[Any], product: Product, *, transposed: bool) -> NDArray[Any]:
    """Merge into a weight that is stored as (out, in), or transposed as (in, out)."""
    b, a, s = product
    return merge(weight, a.T, b.T, s) if transposed else merge(weight, b, a, s)
