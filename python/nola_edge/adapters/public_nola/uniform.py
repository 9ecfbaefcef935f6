"""From random words to ``torch.Tensor.uniform_``, in float32 and in 16 bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


def uniform(
    unit: NDArray[np.float32],
    bound: float,
    dtype: str,
    *,
    fused: bool = True,
    upper_bound: bool = False,
) -> NDArray[np.float32]:
    """Return ``unit * 2 bound - bound`` in [-bound, bound), (n,) float32.

    Parameters
    ----------
    unit : (n,) float32
        Of the unit interval.
    bound : float
        Rounded to float32 first, as torch does.
    dtype : {"F32", "F16", "BF16"}
        Of torch's tensor, to which numbers are rounded.
    fused : bool
        One rounding to float32, as a fused multiply-add makes of it, or two.
    upper_bound : bool
        Leave what is rounded to the upper bound, instead of turning it into the lower one.
    """
    high = np.float32(bound)
    span = high + high
    if fused and math.frexp(float(span))[0] != 0.5:
        values = (unit.astype(np.float64) * float(span) - float(high)).astype(np.float32)
    else:
        values = unit * span - high  # with a power of two the product is exact: both are one
    values = rounded(values, dtype)
    if not upper_bound:
        highest = rounded(np.array([high]), dtype)[0]
        values[values == highest] = -highest
    return values


def rounded(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Round to nearest even to a dtype by its safetensors name; the result is float32 again."""
    single = values.astype(np.float32, copy=False)
    return single if dtype == "F32" else single.astype(numpy_dtype(dtype)).astype(np.float32)
