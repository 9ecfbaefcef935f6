"""The order of rows that rotary embeddings of llama.cpp's LLaMA want.

A Hugging Face head holds its first halves of the rotated pairs, then the second halves; a GGUF head
holds the pairs one after the other. Of a low-rank update only the rows of the left factor move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from nola_edge.merge.low_rank import RowUpdate


def interleaved_rows(
    rows: Callable[[int, int], NDArray[np.float32]], head_rows: int, start: int, stop: int
) -> NDArray[np.float32]:
    """Return rows (start, stop) of an interleaved matrix, and make no others.

    Parameters
    ----------
    rows : callable
        Takes start and stop and returns these rows of the matrix in the Hugging Face order.
    head_rows : int
        Even.
    start, stop : int
    """
    parts = [rows(0, 0)]
    for head in range(start // head_rows * head_rows, stop, head_rows):
        begin, end = max(start - head, 0), min(stop - head, head_rows)
        first, last, half = begin // 2, -(-end // 2), head_rows // 2
        halves = [rows(at + first, at + last) for at in (head, head + half)]
        pairs = np.stack(halves, axis=1).reshape(-1, halves[0].shape[1])
        parts.append(pairs[begin - 2 * first :][: end - begin])
    return np.concatenate(parts)


class InterleavedUpdate:
    """An update for a weight whose rows are interleaved; it has what a RowUpdate has."""

    def __init__(self, update: RowUpdate, head_rows: int) -> None:
        self._update = update
        self._head_rows = head_rows
        self.cols, self.right = update.cols, update.right
        self.scaling, self.threads = update.scaling, update.threads
        self.needs = update.needs

    def magnitude(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """Return DoRA's norms of rows, in their order here."""
        if not self.needs.rows:
            return None
        return interleaved_rows(self._norms, self._head_rows, start, stop)

    def _norms(self, start: int, stop: int) -> NDArray[np.float32]:
        found = self._update.magnitude(start, stop)
        assert found is not None
        return found

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Expand rows of the left factor."""
        return interleaved_rows(self._update.left, self._head_rows, start, stop)
