"""Merge from a mapped file into memory, in one pass without a copy.

That pays where a file is mapped for long, as a switch maps its base: the first access to a page of
a mapping takes longer than reading it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.merge.blocks import naming_rows
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import fill, place
from nola_edge.merge.windows import ANY
from nola_edge.workers import Buffers

if TYPE_CHECKING:
    from nola_edge.merge.low_rank import RowUpdate
    from nola_edge.merge.result import Result
    from nola_edge.merge.windows import Window
    from nola_edge.workers import Workers


def fill_mapped(
    result: Result, memory: memoryview, workers: Workers, num_threads: int | None = None
) -> None:
    """Have a tensor made in memory, a merged one from its mapped file.

    As :func:`~nola_edge.merge.result.fill`. Read first is what DoRA scales, and what holds several
    modules.
    """
    if not isinstance(result, Merged):
        fill(result, memory, workers, num_threads)
        return
    buffers = Buffers()
    for update, window in result.windows(num_threads):
        piece = result.piece(update, window)
        if update.needs == ANY and list(update.parts(window)) == [(update, window)]:
            workers.submit(_merge_mapped, result, update, window, memory, nbytes=piece.work)
        else:
            workers.submit(place, piece, memory, buffers, nbytes=piece.work)


def _merge_mapped(result: Merged, update: RowUpdate, window: Window, memory: memoryview) -> None:
    rows, cols = slice(*window.rows), slice(*window.cols)
    file, info, dtype = result.file, result.info, numpy_dtype(result.dtype)
    weight = np.ndarray(info.shape, dtype, buffer=file.mapped(), offset=info.start)[rows, cols]
    merged = np.ndarray(info.shape, dtype, buffer=memory)[rows, cols]
    left = update.left(*window.rows)
    with naming_rows(file.path, info, window):
        ops.merged(weight, left, update.right, update.scaling, out=merged, num_threads=1)
