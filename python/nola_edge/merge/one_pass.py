"""Merge from a file into memory, in one pass over the memory.

A window is read into a buffer that stays in the processor's cache, and merged from there to where
it belongs. That pays where the memory has been used before, as a switch's has.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.merge.blocks import not_finite, read_runs, runs_of
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import filling, place
from nola_edge.merge.windows import ANY, work_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.result import Result
    from nola_edge.merge.windows import Window
    from nola_edge.workers import Buffers, Job


def filling_in_one_pass(
    result: Result, memory: memoryview, buffers: Buffers, num_threads: int | None = None
) -> Iterator[Job]:
    """Yield the work that makes a tensor in memory, a merged one by way of the cache.

    As :func:`~nola_edge.merge.result.filling`. Merged where they belong are lines that DoRA scales,
    and a tensor that holds several modules.

    Parameters
    ----------
    result, memory, num_threads
        As for `filling`.
    buffers : Buffers
        For one tensor after the other: to touch new memory takes longer than to read into it.
    """
    if not isinstance(result, Merged):
        yield from filling(result, memory, buffers, num_threads)
        return
    whole: NDArray[Any] = np.ndarray(result.shape, numpy_dtype(result.dtype), buffer=memory)
    for update, window in result.windows(num_threads):
        if update.needs == ANY and update.is_one_part:
            work = partial(_merge_apart, result, update, window, whole, buffers)
            yield work, work_bytes(result.info, update, window)
        else:
            piece = result.piece(update, window)
            yield partial(place, piece, memory, buffers), piece.work


def _merge_apart(
    result: Merged, update: LowRank, window: Window, whole: NDArray[Any], buffers: Buffers
) -> None:
    runs, left = runs_of(result.info, window), update.left(*window.rows)
    data = read_runs(result.file, result.info, runs, buffers.get(runs.nbytes))
    read = np.frombuffer(data, whole.dtype).reshape(window.shape)
    out = whole[slice(*window.rows), slice(*window.cols)]
    try:
        ops.merged(read, left, update.right, update.scaling, out=out, num_threads=1)
    except NotFiniteError:
        raise not_finite(result.file.path, result.info, window) from None
