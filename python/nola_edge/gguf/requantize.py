"""Merge rows that are not stored as the floats that are merged: dequantise, merge, quantise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.errors import NotFiniteError
from nola_edge.gguf.quantization import dequantize, quantize
from nola_edge.gguf.survival import Survival
from nola_edge.gguf.types import FLOAT_TYPES
from nola_edge.merge.blocks import block_offset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from nola_edge.input_file import InputFile
    from nola_edge.merge.update import RowUpdate
    from nola_edge.safetensors_file import TensorInfo


#: Elements of a block that is dequantised and quantised anew.
_BLOCK_ELEMENTS = 1 << 18


def requantized_rows(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) row ranges of a few hundred thousand elements."""
    rows, cols = info.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, cols))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def merge_rows(
    file: InputFile, info: TensorInfo, kind: str, update: RowUpdate, rows: tuple[int, int]
) -> tuple[NDArray[np.uint8], Survival | None]:
    """Read rows of a tensor, merge them in fp32 and convert them, on the calling thread.

    Parameters
    ----------
    file, info
        Where the tensor is stored.
    kind : str
        Type to convert to.
    update : RowUpdate
        For the whole tensor.
    rows : (start, stop)

    Returns
    -------
    rows : (stop - start, bytes of a row) uint8
    survival : Survival or None
        What is left of the delta, where `kind` is a quantised type.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN, as it is or in the type `kind`.
    """
    return ops.in_specified_environment(lambda: _merge_rows(file, info, kind, update, rows))


def _merge_rows(
    file: InputFile, info: TensorInfo, kind: str, update: RowUpdate, rows: tuple[int, int]
) -> tuple[NDArray[np.uint8], Survival | None]:
    start, stop = rows
    begin = block_offset(info, start)
    stored = np.empty((stop - start, block_offset(info, 1)), np.uint8)
    file.read_into(stored.reshape(-1).data, info.start + begin)
    before = dequantize(stored, info.dtype)
    wanted = before.copy()
    refusal = NotFiniteError(
        f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such a "
        f"value there, or base and adapter together are too large for {kind}",
        file=file.path,
        field=info.name,
    )
    try:
        ops.merge_(wanted, update.left(start, stop), update.right, update.scaling, num_threads=1)
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
