"""The low-rank update of one stored weight, from one adapter or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nola_edge.adapter.adapter import Adapter


@dataclass(frozen=True)
class Term:
    """One adapter's share in a weight.

    Attributes
    ----------
    adapter : Adapter
    module : str
        The adapter's own module name; it determines the streams.
    weight : float
        Factor on the adapter's scaling, 1 for a plain merge.
    """

    adapter: Adapter
    module: str
    weight: float = 1.0

    @property
    def scaling(self) -> np.float32:
        """Return fl32(weight * s), the product taken in double."""
        return np.float32(self.weight * self.adapter.scaling)


@dataclass(frozen=True)
class Update:
    """``stored += scaling * left @ right`` for a stored matrix of shape (rows, cols).

    Attributes
    ----------
    left : (rows, r) float32
    right : (r, cols) float32
    scaling : float
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    scaling: float

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the rows of `left` that belong to rows of the stored matrix."""
        return self.left[start:stop]


def stored_features(shape: tuple[int, ...], fan_in_fan_out: bool) -> tuple[int, int]:
    """Return (out_features, in_features) of a stored matrix; GPT-2's Conv1D stores (in, out)."""
    rows, cols = shape
    return (cols, rows) if fan_in_fan_out else (rows, cols)


def make_update(
    terms: Sequence[Term], shape: tuple[int, ...], num_threads: int | None = None
) -> Update:
    """Expand the factors of a weight (design section 2, *Merge*).

    One term keeps its scaling for the final multiply-add. Several are one update of concatenated
    rank, each B multiplied beforehand by its own scaling, so that the sum is rounded once.

    Parameters
    ----------
    terms : sequence of Term
        At least one.
    shape : (int, int)
        Of the stored weight.
    num_threads : int, optional

    Returns
    -------
    Update
    """
    lefts: list[NDArray[np.float32]] = []
    rights: list[NDArray[np.float32]] = []
    for term in terms:
        fan_in_fan_out = term.adapter.config.fan_in_fan_out
        out_features, in_features = stored_features(shape, fan_in_fan_out)
        a, b = term.adapter.factors(term.module, out_features, in_features, num_threads)
        if len(terms) > 1:
            b = b * term.scaling
        left, right = (a.T, b.T) if fan_in_fan_out else (b, a)
        lefts.append(left)
        rights.append(right)
    scaling = float(terms[0].scaling) if len(terms) == 1 else 1.0
    return Update(
        np.ascontiguousarray(np.concatenate(lefts, axis=1)),
        np.ascontiguousarray(np.concatenate(rights, axis=0)),
        scaling,
    )
