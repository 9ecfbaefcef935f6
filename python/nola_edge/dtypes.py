"""safetensors dtype names and their numpy counterparts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

#: Bits of an element, for every dtype a safetensors file can hold.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

#: Dtypes of a weight that can be merged, and of coefficients.
MERGEABLE = ("F32", "F16", "BF16")
#: What to do about tensors of an adapter that have another.
SAVE_AS_MERGEABLE = "save the adapter again in one of them (model.float(), then save_pretrained)"

_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a safetensors dtype name; little-endian like the file.

    Raises
    ------
    TypeError
        If numpy has none (the sub-byte F4 and F6 types).
    """
    if name in _NUMPY:
        return np.dtype(_NUMPY[name]).newbyteorder("<")
    if name in _ML_DTYPES:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
        return dtype
    raise TypeError(f"numpy has no dtype for safetensors' {name}")


def safetensors_dtype(dtype: DTypeLike) -> str:
    """Return the safetensors name of a numpy dtype.

    Raises
    ------
    TypeError
        If safetensors has none.
    """
    name = np.dtype(dtype).name
    for table in (_NUMPY, _ML_DTYPES):
        for key, value in table.items():
            if value == name:
                return key
    raise TypeError(f"safetensors has no dtype for numpy's {name}")
