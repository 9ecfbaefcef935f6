"""Factors of adapters as tensors that are never in memory as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.files.tensors import ComputedTensor, StackedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.low_rank import Term
    from nola_edge.ops import Range


def factor_tensor(
    adapter: LowRankAdapter,
    module: str,
    factor: Literal["A", "B"],
    features: int,
    dtype: np.dtype[Any],
) -> Tensor:
    """Return a factor that is made, and rounded, while it is written.

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

    def compute(rows: Range, cols: Range) -> NDArray[Any]:
        if factor == "A":
            values = adapter.factor_a(module, features, cols, rows=rows)
        else:
            values = adapter.factor_b(module, features, rows, cols=cols)
        return _rounded(values, dtype, factor, module)

    return ComputedTensor(dtype, (rank, features) if factor == "A" else (features, rank), compute)


def joined_a(terms: Sequence[Term], in_features: int, dtype: np.dtype[Any]) -> Tensor:
    """Return A of all terms, one below the other: (sum of ranks, in_features)."""
    parts = [factor_tensor(t.adapter, t.module, "A", in_features, dtype) for t in terms]
    return StackedTensor(parts, (sum(term.rank for term in terms), in_features))


def joined_b(terms: Sequence[Term], out_features: int, dtype: np.dtype[Any]) -> Tensor:
    """Return B of all terms, side by side: (out_features, sum of ranks).

    One is as it is; of several, each is multiplied by its own scaling, so that all together have
    the scaling 1 (docs/design.md, *Merge*).
    """
    if len(terms) == 1:
        return factor_tensor(terms[0].adapter, terms[0].module, "B", out_features, dtype)

    def compute(rows: Range, cols: Range) -> NDArray[Any]:
        parts = [
            ops.scaled(t.adapter.factor_b(t.module, out_features, rows), t.scaling) for t in terms
        ]
        values = np.concatenate(parts, axis=1)[:, slice(*cols)]
        return _rounded(values, dtype, "B", terms[0].module)

    return ComputedTensor(dtype, (out_features, sum(term.rank for term in terms)), compute)


def _rounded(
    values: NDArray[np.float32], dtype: np.dtype[Any], factor: str, module: str
) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below, and better
        rounded: NDArray[Any] = values.astype(dtype)
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise NotFiniteError(
            f"lora_{factor} is not finite in {safetensors_dtype(dtype)}", field=module
        )
    return rounded
