"""Merge from a file into memory, in one pass over the memory.

A window is read into a buffer that stays in the processor's cache, and merged from there to where
it belongs. That pays where the memory has been used before, as a switch's has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.merge.blocks import not_finite
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import fill, place
from nola_edge.merge.windows import ANY

if TYPE_CHECKING:
    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.result import Result
    from nola_edge.merge.windows import Window
    from nola_edge.workers import Buffers, Workers


def fill_in_one_pass(
    result: Result,
    memory: memoryview,
    workers: Workers,
    buffers: Buffers,
    num_threads: int | None = None,
) -> None:
    """Have a tensor made in memory, a merged one by way of the cache.

    As :func:`~nola_edge.merge.result.fill`. Merged where they belong are lines that DoRA scales,
    and a tensor that holds several modules.

    Parameters
    ----------
    result, memory, workers, num_threads
        As for `fill`.
    buffers : Buffers
        For one tensor after the other: to touch new memory takes longer than to read into it.
    """
    if not isinstance(result, Merged):
        fill(result, memory, workers, num_threads)
        return
    for update, window in result.windows(num_threads):
        piece = result.piece(update, window)
        if update.needs == ANY and update.is_one_part:
            work = _merge_apart, result, update, window, memory, buffers
            workers.submit(*work, nbytes=piece.work)
        else:
            workers.submit(place, piece, memory, buffers, nbytes=piece.work)


def _merge_apart(
    result: Merged, update: LowRank, window: Window, memory: memoryview, buffers: Buffers
) -> None:
    piece, info, dtype = result.piece(update, window), result.info, numpy_dtype(result.dtype)
    read = np.frombuffer(piece.read(buffers.get(piece.nbytes)), dtype).reshape(window.shape)
    merged = np.ndarray(info.shape, dtype, buffer=memory)[slice(*window.rows), slice(*window.cols)]
    left = update.left(*window.rows)
    try:
        ops.merged(read, left, update.right, update.scaling, out=merged, num_threads=1)
    except NotFiniteError:
        raise not_finite(result.file.path, info, window) from None
