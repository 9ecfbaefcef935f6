"""DoRA: the weights of every output scaled to a trained norm (arXiv 2402.09353).

    Y = W + s B A,   W' = m Y / |Y|     |Y|, m: one number for every output

Y is what a plain merge makes, in float32. Of each output the squares are added in double, the
second half of them to the first until one is left; d = fl32(m / sqrt(sum)); W' = fl32(d Y), rounded
to W's dtype. A window must hold whole outputs: then their norms need no pass of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.adapters.belongs import location
from nola_edge.errors import ArgumentError, NotFiniteError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nola_edge.merge.low_rank import Term

#: Elements whose squares are in memory at a time.
_ELEMENTS = 1 << 16


def merge_scaled_(
    weight: NDArray[Any],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scaling: float,
    magnitude: NDArray[np.float32],
) -> None:
    """Merge into a window that holds whole outputs, in place, and scale each to its magnitude.

    Parameters
    ----------
    weight : (rows, cols) float32, float16 or bfloat16
    left : (rows, r) float32
    right : (r, cols) float32
    scaling : float
    magnitude : (rows, 1) or (1, cols) float32
        Whichever of the two the outputs are.

    Raises
    ------
    NotFiniteError
        If an element becomes infinite or NaN, as all of an output do whose weights are zero.
    """
    merged = np.array(weight, np.float32)
    ops.merge_(merged, left, right, scaling, num_threads=1)
    ops.in_specified_environment(lambda: _scale(weight, merged, magnitude))
    if not np.isfinite(weight.astype(np.float32)).all():
        raise NotFiniteError("a merged weight is infinite or NaN", field="weight")


def _scale(weight: NDArray[Any], merged: NDArray[np.float32], magnitude: NDArray[Any]) -> None:
    are_rows = magnitude.shape == (len(weight), 1)  # one column may be one output, too
    outputs, target = (merged, weight) if are_rows else (merged.T, weight.T)
    step = max(1, _ELEMENTS // max(1, outputs.shape[1]))
    for start in range(0, len(outputs), step):
        some = slice(start, start + step)
        wanted = magnitude.reshape(-1, 1)[some].astype(np.float64)
        with np.errstate(all="ignore"):  # said by who calls
            factor = (wanted / np.sqrt(sums_of_squares(outputs[some]))).astype(np.float32)
            target[some] = (factor * outputs[some]).astype(weight.dtype)


def sums_of_squares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum of squares of every row, (rows, 1), added in an order that never changes."""
    squares = values.astype(np.float64)
    squares *= squares
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        rest = squares[:, half:]
        squares = squares[:, :half].copy()
        squares[:, : rest.shape[1]] += rest
    return squares


def check_alone(terms: Sequence[Term], name: str) -> None:
    """Refuse DoRA beside another adapter in one weight, or with a weight of its own.

    Its result is not a sum: it scales the merged weight.

    Parameters
    ----------
    terms : sequence of Term
        All that is merged into one tensor.
    name : str
        Of the tensor.

    Raises
    ------
    ArgumentError
    """
    for term in terms:
        if term.adapter.magnitude(term.module) is None or (len(terms) == 1 and term.weight == 1):
            continue
        reason = (
            f"is merged with weight {term.weight:g}"
            if len(terms) == 1
            else "shares a weight with other adapters"
        )
        raise ArgumentError(
            f"{printable(name)} {reason}, and DoRA (use_dora) scales the whole weight to norms "
            "that were trained for it alone; merge it by itself",
            file=location(term.adapter),
            field="adapter",
        )
