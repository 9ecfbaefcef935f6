"""Fused multiply-add of float32 with one rounding, in float64 with a sum rounded to odd.

The product of two floats is exact in double. Their sum with a float is rounded to odd: if it is
inexact and its last bit is even, it moves one unit towards the exact value. Double has more than
two bits beyond float's, so rounding such a sum to float is rounding the exact one.
"""

from __future__ import annotations

import numpy as np

F32 = np.float32


def fma32(a, b, c):
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
        return total.astype(F32)
