"""Rows of ggml's types, to float32 and back.

Quantised types go through the reference code of the ``gguf`` package, which gives the bytes that
ggml's own gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import ArgumentError, MismatchError
from nola_edge.files.gguf_types import FLOAT_TYPES, REQUANTIZED_TYPES, TENSOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

#: Types that a merged tensor can be written as.
WRITABLE_TYPES = (*FLOAT_TYPES, *REQUANTIZED_TYPES)


def check_codecs(kinds: Mapping[str, str], file: Path) -> None:
    """Refuse types for which there is no code, here or in the ``gguf`` package.

    Parameters
    ----------
    kinds : mapping
        Type -> a tensor of the file that has it, or is to have it.
    file : Path

    Raises
    ------
    ArgumentError
        If the package is needed and not installed.
    MismatchError
        If it cannot read a type.
    """
    for kind, tensor in kinds.items():
        if kind in FLOAT_TYPES:
            continue
        quants = _quants(kind)
        try:
            quants.dequantize(np.zeros((1, TENSOR_TYPES[kind].nbytes), np.uint8), _code(kind))
        except (NotImplementedError, KeyError):  # a type without code, or newer than the package
            raise MismatchError(
                f"has type {kind}, which the installed gguf package cannot read; load the adapter "
                "beside the base (nola-edge export gguf-lora), or try a newer gguf",
                file=file,
                field=tensor,
                value=kind,
            ) from None


def dequantize(rows: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the values of rows.

    Parameters
    ----------
    rows : (n, bytes of a row) uint8
    kind : str
        A type of ggml.

    Returns
    -------
    (n, elements of a row) float32, new and C-contiguous
    """
    if kind in FLOAT_TYPES:
        return np.array(rows.view(numpy_dtype(kind)), dtype=np.float32, order="C")
    with np.errstate(invalid="ignore", over="ignore"):  # callers check what is finite
        values = _quants(kind).dequantize(rows, _code(kind))
    return np.array(values, dtype=np.float32, order="C")


def quantize(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Return rows of one of :data:`WRITABLE_TYPES`, as bytes; too large values become infinite.

    Parameters
    ----------
    values : (n, elements of a row) float32
    kind : str

    Returns
    -------
    (n, bytes of a row) uint8
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if kind in FLOAT_TYPES:
            return np.ascontiguousarray(values.astype(numpy_dtype(kind))).view(np.uint8)
        rows: NDArray[np.uint8] = _quants(kind).quantize(values, _code(kind))
    return rows


def _quants(kind: str) -> Any:
    try:
        from gguf import quants
    except ImportError:
        raise ArgumentError(
            "merging into quantised tensors needs the gguf package: pip install gguf",
            field=kind,
        ) from None
    return quants


def _code(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind]
