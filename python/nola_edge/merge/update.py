"""The low-rank update of one stored weight, from one adapter or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nola_edge import ops

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
    transposed : bool
        The weight is stored as (in, out).
    """

    adapter: Adapter
    module: str
    weight: float
    transposed: bool

    @property
    def scaling(self) -> float:
        """Return weight * s in double; the core rounds it to float32."""
        return self.weight * self.adapter.scaling


#: Basis elements from which on more threads pay. Below, threads of OpenMP that wait for more work
#: would only take the processor from those that merge.
_WORTH_THREADS = 1 << 28


def stored_features(shape: tuple[int, ...], fan_in_fan_out: bool) -> tuple[int, int]:
    """Return (out_features, in_features) of a stored matrix; GPT-2's Conv1D stores (in, out)."""
    rows, cols = shape
    return (cols, rows) if fan_in_fan_out else (rows, cols)


class RowUpdate(Protocol):
    """What changes a stored weight block of rows by block of rows: ``scaling * left @ right``."""

    @property
    def right(self) -> NDArray[np.float32]:
        """Return the right factor, (r, cols)."""

    @property
    def scaling(self) -> float:
        """Return the factor on the product."""

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of the left factor, (stop - start, r)."""


@dataclass(frozen=True)
class Update:
    """``stored += scaling * left @ right`` for a stored matrix of shape (rows, cols).

    The right factor is expanded once and for all. Rows of the left one are expanded by whoever
    merges these rows, so that this work is spread as merging is.

    Attributes
    ----------
    terms : tuple of Term
    shape : (rows, cols)
    right : (r, cols) float32
        r is the sum of the adapters' ranks.
    scaling : float
    """

    terms: tuple[Term, ...]
    shape: tuple[int, int]
    right: NDArray[np.float32]
    scaling: float

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Expand the rows of the left factor, (stop - start, r), on the calling thread."""
        parts = []
        for term in self.terms:
            adapter, module = term.adapter, term.module
            out_features, in_features = stored_features(self.shape, term.transposed)
            if term.transposed:
                parts.append(adapter.factor_a(module, in_features, (start, stop), 1).T)
            else:
                b = adapter.factor_b(module, out_features, (start, stop), 1)
                parts.append(_scaled(b, term, self.terms))
        return np.ascontiguousarray(np.concatenate(parts, axis=1))


def make_update(
    terms: Sequence[Term], shape: tuple[int, ...], num_threads: int | None = None
) -> Update:
    """Prepare the update of a weight (design section 2, *Merge*).

    One term keeps its scaling for the final multiply-add. Several are one update of concatenated
    rank, each B multiplied beforehand by its own scaling, so that the sum is rounded once.

    Parameters
    ----------
    terms : sequence of Term
        At least one.
    shape : (int, int)
        Of the stored weight.
    num_threads : int, optional
        At most, to expand the right factor.

    Returns
    -------
    Update
    """
    rows, cols = shape
    parts = []
    for term in terms:
        adapter, module = term.adapter, term.module
        out_features, in_features = stored_features(shape, term.transposed)
        count = adapter.config.num_basis_b if term.transposed else adapter.config.num_basis_a
        threads = num_threads if cols * adapter.config.r * count >= _WORTH_THREADS else 1
        if term.transposed:
            b = adapter.factor_b(module, out_features, num_threads=threads)
            parts.append(_scaled(b, term, terms).T)
        else:
            parts.append(adapter.factor_a(module, in_features, num_threads=threads))
    right = np.ascontiguousarray(np.concatenate(parts, axis=0))
    scaling = terms[0].scaling if len(terms) == 1 else 1.0
    return Update(tuple(terms), (rows, cols), right, scaling)


def _scaled(b: NDArray[np.float32], term: Term, terms: Sequence[Term]) -> NDArray[np.float32]:
    return b if len(terms) == 1 else ops.scaled(b, term.scaling)
