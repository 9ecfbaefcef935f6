"""Expanded factors as tensors that are never in memory as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.tensors import ComputedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.adapter.low_rank import LowRankAdapter
    from nola_edge.ops import Range
    from nola_edge.tensors import Tensor


def factor_tensor(
    adapter: LowRankAdapter,
    module: str,
    factor: Literal["A", "B"],
    features: int,
    dtype: np.dtype[Any],
) -> Tensor:
    """Return a factor that is expanded, and rounded, while it is written.

    Parameters
    ----------
    adapter : LowRankAdapter
    module : str
    factor : {"A", "B"}
    features : int
        ``in_features`` for A, ``out_features`` for B.
    dtype : numpy.dtype

    Returns
    -------
    Tensor
        (r, in_features) or (out_features, r); reading it raises NotFiniteError where an element is
        too large for the dtype.
    """
    rank = adapter.rank(module)

    def expand(rows: Range, cols: Range) -> NDArray[Any]:
        if factor == "A":
            values = adapter.factor_a(module, features, cols, rows=rows)
        else:
            values = adapter.factor_b(module, features, rows, cols=cols)
        with np.errstate(over="ignore"):  # said below, and better
            rounded: NDArray[Any] = values.astype(dtype)
        if not np.isfinite(rounded.astype(np.float32)).all():
            kind = safetensors_dtype(dtype)
            raise NotFiniteError(f"lora_{factor} is not finite in {kind}", field=module)
        return rounded

    return ComputedTensor(dtype, (rank, features) if factor == "A" else (features, rank), expand)
