"""From random words to ``torch.Tensor.uniform_``, in float32 and in 16 bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


def between(unit: NDArray[np.float32], bound: float, *, fused: bool) -> NDArray[np.float32]:
    """Map numbers of the unit interval to ``[-bound, bound]``: ``unit * 2 bound - bound``.

    Parameters
    ----------
    unit : (n,) float32
    bound : float
        Rounded to float32 first, as torch does.
    fused : bool
        One rounding, as compilers make of it where there is a fused multiply-add, or two.

    Returns
    -------
    (n,) float32
    """
    high = np.float32(bound)
    span = high + high
    if fused and math.frexp(float(span))[0] != 0.5:
        return (unit.astype(np.float64) * float(span) - float(high)).astype(np.float32)
    return unit * span - high  # with a power of two the product is exact, so that both are one


def rounded(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Round to nearest even to a dtype by its safetensors name; the result is float32 again."""
    single = values.astype(np.float32, copy=False)
    return single if dtype == "F32" else single.astype(numpy_dtype(dtype)).astype(np.float32)
