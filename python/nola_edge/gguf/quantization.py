"""The numbers of ggml's types.

Types that are written are the core's, with the bytes that ggml's reference code gives. Others are
only read, by the ``gguf`` package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.errors import ArgumentError, MismatchError
from nola_edge.files.gguf_types import FLOAT_TYPES, REQUANTIZED_TYPES, TENSOR_TYPES
from nola_edge.gguf import blocks
from nola_edge.merge.numbers import FloatNumbers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.gguf import blocks
from nola_edge.merge.numbers import Numbers

#: Types that a merged tensor can be written as.
WRITABLE_TYPES = (*FLOAT_TYPES, *REQUANTIZED_TYPES)
#: Each value to the nearest code of its block, as llama.cpp's own quantiser does.
NEAREST = "nearest"
#: With each block's change amplified until as much of it is there as should be.
AMPLIFIED = "amplified"
#: Ways to round to a quantised type.
ROUNDINGS = (NEAREST, AMPLIFIED)
#: The smallest float16 above 0: a block of zeros has no scale.
_SMALLEST_SCALE = np.float32(2.0**-24)


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
        if kind in WRITABLE_TYPES:
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


class QuantizedNumbers:
    """The numbers of a quantised type that can be written.

    Attributes
    ----------
    kind : str
        Of :data:`REQUANTIZED_TYPES`.
    """

    unit = "step"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the values of rows; see :meth:`Numbers.decode`."""
        return blocks.dequantized(rows, self.kind, num_threads=1)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return rows of the nearest numbers; see :meth:`Numbers.encode`."""
        return blocks.quantized(values, self.kind, num_threads=1)

    def spacing(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scale of each element's block; see :meth:`Numbers.spacing`."""
        kind = TENSOR_TYPES[self.kind]
        # Each block begins with its scale.
        stored = rows.reshape(len(rows), -1, kind.nbytes)
        scales = np.abs(np.ascontiguousarray(stored[:, :, :2]).view(np.float16)[:, :, 0])
        scales[~np.isfinite(scales)] = 0
        steps = np.maximum(scales.astype(np.float32), _SMALLEST_SCALE)
        return np.repeat(steps, kind.block, axis=1)


class ReadNumbers(QuantizedNumbers):
    """The numbers of a quantised type that is only read.

    Attributes
    ----------
    kind : str
        Any other.
    """

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the values of rows; see :meth:`Numbers.decode`."""
        with np.errstate(invalid="ignore", over="ignore"):  # callers check what is finite
            values = _quants(self.kind).dequantize(rows, _code(self.kind))
        return np.array(values, dtype=np.float32, order="C")


def numbers_of(kind: str) -> Numbers:
    """Return the numbers of one of ggml's types."""
    if kind in FLOAT_TYPES:
        return FloatNumbers(kind)
    return QuantizedNumbers(kind) if kind in REQUANTIZED_TYPES else ReadNumbers(kind)


def _quants(kind: str) -> Any:
    try:
        from gguf import quants
    except ImportError:
        raise ArgumentError(
            f"reading {kind} needs the gguf package: pip install gguf",
            field=kind,
        ) from None
    return quants


def _code(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind]
