"""The pieces of a result one after the other, for whoever cannot take them in any order.

They are made with the same strips of columns as always, since what is quantised again may depend on
them: all strips of some rows, then of the next rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.merge.low_rank import needs_of, total_rank
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import Piece
from nola_edge.merge.stacks import MergedStack
from nola_edge.merge.windows import BLOCK_BYTES, Runs, Window, strips

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.result import Result

#: Right factors that are kept from rows to rows; more are expanded for each.
_HELD_BYTES = 24 << 20
_FLOAT_BYTES = 4


def pieces_in_order(result: Result, num_threads: int | None = None) -> Iterator[Piece]:
    """Yield the pieces of a tensor, each of which begins where the one before ends.

    Parameters
    ----------
    result : Result
    num_threads : int, optional
        As for :meth:`Result.pieces`.
    """
    if isinstance(result, MergedStack):
        for number, matrix in enumerate(result.matrices):
            for piece in pieces_in_order(matrix, num_threads):
                yield result.placed(piece, number)
    elif isinstance(result, Merged) and result.info.nbytes:
        cols = list(strips(result.info, total_rank(result.terms), needs_of(result.terms)))
        several = len(cols) > 1
        yield from _Rows(result, cols).pieces() if several else result.pieces(num_threads)
    else:
        yield from result.pieces(num_threads)


class _Rows:
    """Whole rows of a matrix that is merged in several strips."""

    def __init__(self, result: Merged, strips: list[tuple[int, int]]) -> None:
        self._result = result
        self._strips = strips
        self._rank = total_rank(result.terms)
        self._held: dict[tuple[int, int], LowRank] = {}
        self._holds = _FLOAT_BYTES * self._rank * result.shape[1] <= _HELD_BYTES

    def pieces(self) -> Iterator[Piece]:
        info, count = self._result.info, self._result.shape[0]
        most = self._result.window_bytes or BLOCK_BYTES
        step = most * count // info.nbytes
        if needs_of(self._result.terms).cols:
            step = count
        for start in range(0, count, max(1, step)):
            rows = start, min(start + max(1, step), count)
            # Of one row, which may be as long as can be, the strips are in order already.
            for together in [self._strips] if step else [[cols] for cols in self._strips]:
                yield self._piece(rows, together)

    def _piece(self, rows: tuple[int, int], together: list[tuple[int, int]]) -> Piece:
        outer = Window(rows, (together[0][0], together[-1][1]))
        runs = outer.runs(self._result.row_bytes, self._result.shape[1])
        widest = max(stop - start for start, stop in together)
        # What is held of a strip, and what making its windows takes, which is as large.
        work = 2 * _FLOAT_BYTES * self._rank * widest + 4 * runs.nbytes
        return Piece(runs, 0, work, partial(self._make, rows, together, runs), _unchanged)

    def _make(
        self, rows: tuple[int, int], together: list[tuple[int, int]], runs: Runs, _: memoryview
    ) -> memoryview:
        whole = np.empty(runs.nbytes, np.uint8).data
        for cols in together:
            piece = self._result.piece(self._update(cols), Window(rows, cols))
            made = piece.make(np.empty(piece.nbytes, np.uint8).data)
            for offset, part in piece.runs.parts(made):
                begin = offset - runs.offset
                whole[begin : begin + len(part)] = part
        return whole

    def _update(self, cols: tuple[int, int]) -> LowRank:
        found = self._held.get(cols) or self._result.update(cols, 1)
        if self._holds:
            self._held[cols] = found
        return found


def _unchanged(data: memoryview, _: memoryview) -> memoryview:
    return data
