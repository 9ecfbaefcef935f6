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
