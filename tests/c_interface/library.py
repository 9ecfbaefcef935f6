"""nola.h through ctypes: types of its structures, and its functions with their arguments."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

OK, INVALID_ARGUMENT, NOT_FINITE, INVALID_FILE, MISMATCH = 0, 1, 2, 5, 6
BASES = {"rademacher": 0, "uniform": 1}
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
BLOCKS = {"Q4_0": 0, "Q4_1": 1, "Q5_0": 2, "Q5_1": 3, "Q8_0": 4}


class Matrix(ctypes.Structure):
    _fields_ = [
        (name, c_uint64)
        for name in (
            "seed", "stream", "num_basis", "rows", "cols",
            "row_begin", "row_end", "col_begin", "col_end",
        )
    ] + [("basis", c_int32)]  # fmt: skip


class Weight(ctypes.Structure):
    _fields_ = [
        ("base", c_void_p), ("out", c_void_p), ("rows", c_uint64), ("cols", c_uint64),
        ("base_stride", c_uint64), ("out_stride", c_uint64), ("type", c_int32),
    ]  # fmt: skip


class Update(ctypes.Structure):
    _fields_ = [("b", c_void_p), ("a", c_void_p), ("rank", c_uint64), ("scaling", c_double)]


class AdapterInfo(ctypes.Structure):
    _fields_ = [
        ("num_modules", c_uint64), ("rank", c_uint64), ("num_basis_a", c_uint64),
        ("num_basis_b", c_uint64), ("seed", c_uint64), ("scaling", c_double),
        ("num_whole_tensors", c_uint64), ("num_expected", c_uint64), ("basis", c_int32),
        ("coefficient_bits", c_int32), ("fan_in_fan_out", c_int32),
    ]  # fmt: skip


class Module(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("tensor", c_char_p), ("begin", c_uint64), ("end", c_uint64)]


class Expected(ctypes.Structure):
    _fields_ = [(name, c_char_p) for name in ("name", "kind", "base_fingerprint", "sha256")]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "nola_abi_version": (c_uint32, []),
    "nola_version": (c_char_p, []),
    "nola_last_error": (c_char_p, []),
    "nola_isa": (c_int32, [POINTER(c_char_p)]),
    "nola_force_isa": (c_int32, [c_char_p]),
    "nola_stream_id": (c_int32, [c_char_p, c_int32, POINTER(c_uint64)]),
    "nola_expand": (c_int32, [POINTER(Matrix), c_void_p, c_void_p, c_int32]),
    "nola_project": (c_int32, [POINTER(Matrix), c_void_p, c_void_p, c_int32]),
    "nola_merge": (c_int32, [POINTER(Weight), POINTER(Update), c_int32]),
    "nola_scale": (c_int32, [c_void_p, c_uint64, c_double]),
    "nola_dequantize": (c_int32, [c_int32, c_void_p, c_uint64, c_void_p, c_int32]),
    "nola_quantize": (c_int32, [c_int32, c_void_p, c_uint64, c_void_p, c_int32]),
    "nola_quantize_amplified": (
        c_int32, [c_int32, c_void_p, c_void_p, c_uint64, c_void_p, c_int32],
    ),
    "nola_adapter_open": (c_int32, [c_char_p, POINTER(c_void_p)]),
    "nola_adapter_open_memory": (c_int32, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "nola_adapter_close": (None, [c_void_p]),
    "nola_adapter_get_info": (c_int32, [c_void_p, POINTER(AdapterInfo)]),
    "nola_adapter_get_module": (c_int32, [c_void_p, c_uint64, POINTER(Module)]),
    "nola_adapter_get_expected": (c_int32, [c_void_p, c_uint64, POINTER(Expected)]),
    "nola_adapter_check_shapes": (c_int32, [c_void_p, c_void_p, c_void_p]),
    "nola_adapter_factor": (
        c_int32, [c_void_p, c_uint64, c_int32, c_uint64, c_uint64, c_uint64, c_void_p, c_int32],
    ),
    "nola_adapter_merge": (
        c_int32, [c_void_p, c_uint64, POINTER(Weight), c_uint64, c_int32],
    ),
}  # fmt: skip


def load(path: Path) -> ctypes.CDLL:
    """Open the library and declare its functions."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def place(array: Any) -> int:
    return int(array.ctypes.data)


def whole(rows: int, cols: int, **fields: Any) -> Matrix:
    return Matrix(rows=rows, row_end=rows, cols=cols, col_end=cols, **fields)


def weight_of(base: Any, out: Any) -> Weight:
    """Describe a weight of contiguous rows."""
    rows, cols = base.shape
    kind = TYPES[base.dtype.name]
    made = Weight(place(base), place(out), rows, cols, cols, cols, kind)
    made.keeps = base, out
    return made


def update_of(b: Any, a: Any, scaling: float) -> Update:
    made = Update(place(b), place(a), len(a), scaling)
    made.keeps = b, a
    return made


def stream_of(library: ctypes.CDLL, module: str, factor: str) -> int:
    stream = c_uint64()
    assert library.nola_stream_id(module.encode(), ord(factor), stream) == OK
    return stream.value


def expand(library: ctypes.CDLL, matrix: Matrix, coefficients: Any, threads: int = 1) -> Any:
    """Return the wanted window, float32."""
    shape = matrix.row_end - matrix.row_begin, matrix.col_end - matrix.col_begin
    out = np.empty(shape, np.float32)
    status = library.nola_expand(matrix, place(coefficients), place(out), threads)
    assert status == OK, library.nola_last_error()
    return out
