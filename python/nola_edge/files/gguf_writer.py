"""Write a whole GGUF file; its layout is told in :mod:`nola_edge.files.gguf`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.files.gguf import padded
from nola_edge.files.gguf_types import ARRAY, BOOL, STRING, TENSOR_TYPES, VALUE_FORMATS
from nola_edge.files.signature import MAGIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Value = bool | int | float | str | Sequence[int] | Sequence[str]

_VERSION = 3
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32 = 4, 5, 6


def write_gguf(
    path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write metadata and tensors to a new file.

    Parameters
    ----------
    path : Path
    metadata : mapping
        Key -> value. Numbers are stored as uint32 and float32; lists hold strings or int32.
    tensors : mapping
        Name -> array of float32, float16 or bfloat16, stored as it is.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with path.open("xb") as file:
        header = _header(metadata, arrays)
        file.write(header.ljust(padded(len(header), _ALIGNMENT), b"\0"))
        for array in arrays.values():
            data = array.tobytes()
            file.write(data.ljust(padded(len(data), _ALIGNMENT), b"\0"))


def _header(metadata: Mapping[str, Value], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(arrays), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, array in arrays.items():
        parts.append(_tensor_info(name, array, offset))
        offset += padded(array.nbytes, _ALIGNMENT)
    return b"".join(parts)


def _tensor_info(name: str, array: NDArray[Any], offset: int) -> bytes:
    """Return a tensor's entry; dimensions are stored with the fastest first."""
    code = TENSOR_TYPES[safetensors_dtype(array.dtype)].code
    sizes = struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
    return _string(name) + sizes + struct.pack("<IQ", code, offset)


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, (bool, int, float)):
        kind = {bool: BOOL, int: _UINT32, float: _FLOAT32}[type(value)]
        return struct.pack("<I" + VALUE_FORMATS[kind], kind, value)
    items = [_string(v) if isinstance(v, str) else struct.pack("<i", v) for v in value]
    kind = STRING if value and isinstance(value[0], str) else _INT32
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
