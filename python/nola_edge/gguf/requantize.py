"""Merge rows that are not stored as the floats that are merged: dequantise, merge, quantise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.errors import NotFiniteError
from nola_edge.files.gguf_types import FLOAT_TYPES
from nola_edge.gguf.quantization import dequantize, quantize
from nola_edge.gguf.survival import Survival
from nola_edge.merge.blocks import apply_update, read_runs, runs_of
from nola_edge.merge.windows import windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import RowUpdate
    from nola_edge.merge.windows import Window


#: Elements of a window that is dequantised and quantised anew.
_WINDOW_ELEMENTS = 1 << 18


def requantized_windows(info: TensorInfo, update: RowUpdate) -> Iterator[Window]:
    """Yield windows of a strip, of a few hundred thousand elements."""
    return windows(info, [update], _WINDOW_ELEMENTS * info.nbytes // info.size)


def merge_rows(
    file: InputFile, info: TensorInfo, kind: str, update: RowUpdate, window: Window
) -> tuple[NDArray[np.uint8], Survival | None]:
    """Read a window of a tensor, merge it in fp32 and convert it, on the calling thread.

    Parameters
    ----------
    file, info
        Where the tensor is stored.
    kind : str
        Type to convert to.
    update : RowUpdate
        For the window's columns.
    window : Window

    Returns
    -------
    rows : (rows of the window, bytes of each) uint8
    survival : Survival or None
        What is left of the delta, where `kind` is a quantised type.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN, as it is or in the type `kind`.
    """
    return ops.in_specified_environment(lambda: _merge_rows(file, info, kind, update, window))


def _merge_rows(
    file: InputFile, info: TensorInfo, kind: str, update: RowUpdate, window: Window
) -> tuple[NDArray[np.uint8], Survival | None]:
    start, stop = window.rows
    runs = runs_of(info, window)
    stored = np.empty((stop - start, runs.nbytes // (stop - start)), np.uint8)
    read_runs(file, info, runs, stored.reshape(-1).data)
    before = dequantize(stored, info.dtype)
    wanted = before.copy()
    refusal = NotFiniteError(
        f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such a "
        f"value there, or base and adapter together are too large for {kind}",
        file=file.path,
        field=info.name,
    )
    try:
        apply_update(wanted, update, window)
    except NotFiniteError:
        raise refusal from None
    merged = quantize(wanted, kind)
    if kind == info.dtype:
        # Rows that no adapter changes keep their bytes, whoever quantised them.
        same = (wanted == before).all(axis=1)
        merged[same] = stored[same]
    got = dequantize(merged, kind)
    if not np.isfinite(got).all():
        raise refusal
    if kind in FLOAT_TYPES:
        return merged, None
    return merged, Survival.of(before, wanted, got)
