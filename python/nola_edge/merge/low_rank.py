"""The low-rank update of one stored weight, from one adapter or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from nola_edge import ops
from nola_edge.merge.parts import PartedUpdate, common, segments
from nola_edge.merge.windows import ANY, WholeLines
from nola_edge.threads import thread_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.merge.target import Target
    from nola_edge.merge.windows import Window
    from nola_edge.ops import Range


@dataclass(frozen=True, eq=False, repr=False)
class Term:
    """One adapter's share in a weight.

    Attributes
    ----------
    adapter : LowRankAdapter
    module : str
        The adapter's own module name; it determines the streams.
    weight : float
        Factor on the adapter's scaling, 1 for a plain merge.
    target : Target
        Where the weight is stored.
    """

    adapter: LowRankAdapter
    module: str
    weight: float
    target: Target

    @property
    def scaling(self) -> float:
        """Return weight * s in double; the core rounds it to float32."""
        return self.weight * self.adapter.scaling_of(self.module)

    @property
    def rank(self) -> int:
        """Return the rank that it adds to the update."""
        return self.adapter.rank(self.module)

    def a(self, cols: Range, num_threads: int | None = None) -> NDArray[np.float32]:
        """Return columns of A, (r, stop - start)."""
        return self.adapter.factor_a(self.module, self.target.in_features, cols, num_threads)

    def b(self, lines: Range, num_threads: int | None = None) -> NDArray[np.float32]:
        """Return the rows of B that lines of the stored weight want, (stop - start, r)."""

        def rows(start: int, stop: int) -> NDArray[np.float32]:
            shape = self.target.out_features
            return self.adapter.factor_b(self.module, shape, (start, stop), num_threads)

        return self.target.rows_of(rows, *lines)

    def norms(self, lines: Range) -> NDArray[np.float32] | None:
        """Return DoRA's norms of lines of the stored weight, (stop - start, 1), if there are."""
        found = self.adapter.magnitude(self.module)
        if found is None:
            return None

        def rows(start: int, stop: int) -> NDArray[np.float32]:
            return found.read(start, stop).astype(np.float32)[:, None]

        return self.target.rows_of(rows, *lines)


#: Basis elements from which on more threads pay. Below, threads of OpenMP that wait for more work
#: would only take the processor from those that merge.
_WORTH_THREADS = 1 << 28


class LowRank(Protocol):
    """What changes some columns of a stored weight, row by row: ``scaling * left @ right``."""

    @property
    def cols(self) -> tuple[int, int]:
        """Return the columns (start, stop)."""

    @property
    def right(self) -> NDArray[np.float32]:
        """Return these columns of the right factor, (r, stop - start)."""

    @property
    def scaling(self) -> float:
        """Return the factor on the product."""

    @property
    def threads(self) -> int:
        """Return how many threads share the work, and the memory for it."""

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of the left factor, (stop - start, r)."""

    @property
    def rank(self) -> int:
        """Return r."""

    @property
    def needs(self) -> WholeLines:
        """Return which lines a window must hold whole."""

    @property
    def is_one_part(self) -> bool:
        """Tell whether every window is one of its :meth:`parts`, merged by this update."""

    def parts(self, window: Window) -> Iterator[tuple[LowRank, Window]]:
        """Yield what a window is merged as: parts of it, with their updates."""

    def magnitude(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """Return DoRA's norms of the outputs: of these rows (n, 1), or of all columns (1, n)."""


class Update(NamedTuple):
    """``stored[:, cols] += scaling * left @ right`` for a stored matrix of shape (rows, cols).

    The right factor is expanded once and for all. Rows of the left one are expanded by the
    thread that merges them, so that this work is spread as merging is.

    Attributes
    ----------
    terms : tuple of Term
    shape : (rows, cols)
    cols : (start, stop)
    right : (r, stop - start) float32
        r is the sum of the adapters' ranks.
    scaling : float
    threads : int
        That share the work, and the memory for it.
    needs : WholeLines
        Which lines a window must hold whole.
    """

    terms: tuple[Term, ...]
    shape: tuple[int, int]
    cols: tuple[int, int]
    right: NDArray[np.float32]
    scaling: float
    threads: int
    needs: WholeLines = ANY

    @property
    def rank(self) -> int:
        """Return r."""
        return len(self.right)

    @property
    def is_one_part(self) -> bool:
        """Return True."""
        return True

    def parts(self, window: Window) -> Iterator[tuple[Update, Window]]:
        """Yield the window: it is one part."""
        yield self, window

    def magnitude(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """Return DoRA's norms of the outputs: of these rows (n, 1), or of all columns (1, n)."""
        term = self.terms[0]
        if term.target.transposed:
            norms = term.norms(self.cols)
            return None if norms is None else norms.T
        return term.norms((start, stop))

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Expand the rows of the left factor, (stop - start, r), on the calling thread."""
        rows = start, stop
        parts = [
            term.a(rows, 1).T if term.target.transposed else self._scaled_b(term, rows)
            for term in self.terms
        ]
        return _joined(parts, 1)

    def _scaled_b(self, term: Term, rows: Range) -> NDArray[np.float32]:
        return _scaled(term.b(rows, 1), term, self.terms)


def total_rank(terms: Sequence[Term]) -> int:
    """Return the rank of the update that terms make up."""
    return sum(term.rank for term in terms)


def needs_of(terms: Sequence[Term]) -> WholeLines:
    """Return which lines of a weight a window must hold whole: those whose norm DoRA sets."""
    scaled = [t for t in terms if t.adapter.magnitude(t.module) is not None]
    if not scaled:
        return ANY
    return WholeLines(
        rows=any(not term.target.transposed for term in scaled),
        cols=any(term.target.transposed for term in scaled),
    )


def make_update(
    terms: Sequence[Term],
    shape: tuple[int, ...],
    cols: tuple[int, int],
    num_threads: int | None = None,
) -> LowRank:
    """Prepare the update of some columns of a weight (docs/design.md, *Merge*).

    One term keeps its scaling for the final multiply-add. Several that change the same lines are
    one update of concatenated rank, each B multiplied beforehand by its own scaling, so that the
    sum is rounded once.

    Parameters
    ----------
    terms : sequence of Term
        At least one.
    shape : (int, int)
        Of the stored weight.
    cols : (start, stop)
    num_threads : int, optional
        At most, to expand the right factor, and that will merge. Default: the processors this
        process may use.

    Returns
    -------
    LowRank
    """
    if all(term.target.is_whole(shape) for term in terms):
        return _make_update(terms, (shape[0], shape[1]), cols, num_threads)
    transposed, divided = terms[0].target.transposed, segments(terms, shape)
    updates = []
    for lines, here in divided:
        part = common(lines, cols) if transposed else cols
        if part[0] < part[1]:
            update = _make_update(here, (shape[0], shape[1]), part, num_threads)
            updates.append((lines, update))
    return PartedUpdate(
        tuple(updates), transposed, cols, needs_of(terms), thread_count(num_threads)
    )


def _make_update(
    terms: Sequence[Term], shape: tuple[int, int], cols: Range, num_threads: int | None
) -> Update:
    most = thread_count(num_threads)
    parts = []
    for term in terms:
        transposed = term.target.transposed
        work = (cols[1] - cols[0]) * term.rank * term.adapter.work("B" if transposed else "A")
        threads = num_threads if work >= _WORTH_THREADS else 1
        if transposed:
            parts.append(_scaled(term.b(cols, threads), term, terms).T)
        else:
            parts.append(term.a(cols, threads))
    scaling = terms[0].scaling if len(terms) == 1 else 1.0
    needs, right = needs_of(terms), _joined(parts, 0)
    return Update(tuple(terms), shape, cols, right, scaling, most, needs)


def _scaled(b: NDArray[np.float32], term: Term, terms: Sequence[Term]) -> NDArray[np.float32]:
    return b if len(terms) == 1 else ops.scaled(b, term.scaling)


def _joined(parts: list[NDArray[np.float32]], axis: int) -> NDArray[np.float32]:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
    return np.ascontiguousarray(whole)
