"""Merge a stored weight window by window, so that memory stays flat.

A window is read from the file into a small buffer, merged there and handed on while it is still
in cache. Windows are independent: any thread may take any of them and the bytes are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.merge.dora import merge_scaled_

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.windows import Runs, Window


def runs_of(info: TensorInfo, window: Window) -> Runs:
    """Return where the bytes of a window of a stored matrix lie in it."""
    rows, cols = info.shape
    return window.runs(info.nbytes // rows, cols)


def read_runs(file: Source, info: TensorInfo, runs: Runs, out: memoryview) -> memoryview:
    """Read bytes of a tensor into a buffer of just so many, and return that."""
    for offset, part in runs.parts(out):
        file.read_into(part, info.start + offset)
    return out


def merge_window(
    data: memoryview, path: Path, info: TensorInfo, update: LowRank, window: Window
) -> None:
    """Merge a window of a weight that is in memory, in place, on the calling thread.

    Parameters
    ----------
    data : writable memoryview of bytes
        The window.
    path, info
        Where the weight is stored, for errors.
    update : LowRank
        For the window's columns.
    window : Window

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    weight: NDArray[Any] = np.frombuffer(data, dtype=numpy_dtype(info.dtype))
    try:
        apply_update(weight.reshape(window.shape), update, window)
    except NotFiniteError:
        raise not_finite(path, info, window) from None


def not_finite(path: Path, info: TensorInfo, window: Window) -> NotFiniteError:
    """Return the refusal of an element that is not finite, which says where it is stored."""
    start, stop = window.rows
    return NotFiniteError(
        f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such "
        f"a value there, or base and adapter together are too large for {info.dtype}",
        file=path,
        field=info.name,
    )


def apply_update(weight: NDArray[Any], update: LowRank, window: Window) -> None:
    """Merge an update into the values of a window, in place.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    for part, inner in update.parts(window):
        here = weight[inner.within(window)]
        values = np.ascontiguousarray(here)
        _merge_(values, part, inner)
        if values is not here:
            here[...] = values


def _merge_(weight: NDArray[Any], update: LowRank, window: Window) -> None:
    left = update.left(*window.rows)
    magnitude = update.magnitude(*window.rows)
    if magnitude is None:
        ops.merge_(weight, left, update.right, update.scaling, num_threads=1)
    else:
        merge_scaled_(weight, left, update.right, update.scaling, magnitude)
