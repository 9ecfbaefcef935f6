"""The order of rows that rotary embeddings of llama.cpp's LLaMA want.

A Hugging Face head holds its first halves of the rotated pairs, then the second halves; a GGUF head
holds the pairs one after the other. Of a low-rank update only the rows of the left factor move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.merge.update import RowUpdate


def interleave(rows: NDArray[np.float32], head_rows: int) -> NDArray[np.float32]:
    """Bring whole heads of rows from the Hugging Face order into that of GGUF.

    Parameters
    ----------
    rows : (heads * head_rows, n)
    head_rows : int
        Even.
    """
    pairs = rows.reshape(-1, 2, head_rows // 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


class InterleavedUpdate:
    """An update for a weight whose rows are interleaved; it has what a RowUpdate has."""

    def __init__(self, update: RowUpdate, head_rows: int) -> None:
        self._update = update
        self._head_rows = head_rows

    @property
    def right(self) -> NDArray[np.float32]:
        """Return the right factor."""
        return self._update.right

    @property
    def scaling(self) -> float:
        """Return the factor on the product."""
        return self._update.scaling

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Expand rows of the left factor, with the heads that they belong to."""
        first = start // self._head_rows * self._head_rows
        last = -(-stop // self._head_rows) * self._head_rows
        heads = interleave(self._update.left(first, last), self._head_rows)
        return heads[start - first : stop - first]
