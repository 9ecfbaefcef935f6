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
from nola_edge.merge.windows import windows, work_bytes
from nola_edge.workers import Buffers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import RowUpdate
    from nola_edge.merge.windows import Runs, Window
    from nola_edge.workers import Workers


def runs_of(info: TensorInfo, window: Window) -> Runs:
    """Return where the bytes of a window of a stored matrix lie in it."""
    rows, cols = info.shape
    return window.runs(info.nbytes // rows, cols)


def read_runs(file: InputFile, info: TensorInfo, runs: Runs, out: memoryview) -> memoryview:
    """Read bytes of a tensor into the beginning of a buffer, and return that."""
    view = out[: runs.nbytes]
    for offset, part in runs.parts(view):
        file.read_into(part, info.start + offset)
    return view


def read_merged(
    file: InputFile, info: TensorInfo, update: RowUpdate, window: Window, out: memoryview
) -> memoryview:
    """Read a window of a weight into a buffer and merge it there, on the calling thread.

    Parameters
    ----------
    file, info
        Where the weight is stored.
    update : RowUpdate
        For the window's columns.
    window : Window
    out : writable memoryview of bytes
        At least as large as the window.

    Returns
    -------
    memoryview
        The merged bytes, the beginning of `out`.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    view = read_runs(file, info, runs_of(info, window), out)
    merge_window(view, file.path, info, update, window)
    return view


def merge_window(
    data: memoryview, path: Path, info: TensorInfo, update: RowUpdate, window: Window
) -> None:
    """Merge a window of a weight that is in memory, in place, on the calling thread.

    Parameters
    ----------
    data : writable memoryview of bytes
        The window.
    path, info
        Where the weight is stored, for errors.
    update : RowUpdate
        For the window's columns.
    window : Window

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    start, stop = window.rows
    weight: NDArray[Any] = np.frombuffer(data, dtype=numpy_dtype(info.dtype))
    weight = weight.reshape(window.shape)
    try:
        apply_update(weight, update, window)
    except NotFiniteError:
        raise NotFiniteError(
            f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such "
            f"a value there, or base and adapter together are too large for {info.dtype}",
            file=path,
            field=info.name,
        ) from None


def apply_update(weight: NDArray[Any], update: RowUpdate, window: Window) -> None:
    """Merge an update into the values of a window, in place.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    left = update.left(*window.rows)
    magnitude = update.magnitude(*window.rows)
    if magnitude is None:
        ops.merge_(weight, left, update.right, update.scaling, num_threads=1)
    else:
        merge_scaled_(weight, left, update.right, update.scaling, magnitude)


def submit_merge(
    workers: Workers,
    file: InputFile,
    info: TensorInfo,
    updates: Iterable[RowUpdate],
    out: memoryview,
) -> None:
    """Have a whole weight read into memory and merged there, by as many as are free.

    Parameters
    ----------
    workers : Workers
        What went wrong is raised by them.
    file, info
        Where the weight is stored.
    updates : iterable of RowUpdate
        Of all strips.
    out : writable memoryview of bytes
        As large as the weight.
    """
    buffers = Buffers()
    for update in updates:
        for window in windows(info, [update]):
            need = work_bytes(info, [update], window)
            workers.submit(_merge_in_memory, file, info, update, window, out, buffers, nbytes=need)


def _merge_in_memory(
    file: InputFile,
    info: TensorInfo,
    update: RowUpdate,
    window: Window,
    out: memoryview,
    buffers: Buffers,
) -> None:
    runs = runs_of(info, window)
    if runs.count == 1:
        read_merged(file, info, update, window, out[runs.offset :])
        return
    merged = read_merged(file, info, update, window, buffers.get(runs.nbytes))
    for offset, part in runs.parts(merged):
        out[offset : offset + len(part)] = part
