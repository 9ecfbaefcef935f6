"""GGUF files spelled out byte by byte, so that any field may lie."""

from __future__ import annotations

import struct

import numpy as np

CODES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "BF16": 30,
}
UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 6, 7, 8, 9, 10
_FORMATS = {UINT8: "<B", UINT32: "<I", FLOAT32: "<f", BOOL: "<B", UINT64: "<Q"}


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value) -> bytes:
    begin = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return begin + text(value)
    if kind == ARRAY:
        element, values = value
        parts = [
            text(v) if element == STRING else struct.pack(_FORMATS[element], v) for v in values
        ]
        return begin + struct.pack("<IQ", element, len(values)) + b"".join(parts)
    return begin + struct.pack(_FORMATS[kind], value)


def tensor(name: str | bytes, sizes, code: int, offset: int) -> bytes:
    """Encode an entry; sizes are ggml's, the fastest first."""
    return (
        text(name)
        + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        + struct.pack("<IQ", code, offset)
    )


def header(pairs, tensors, *, version=3, magic=b"GGUF", counts=None) -> bytes:
    count, pair_count = counts or (len(tensors), len(pairs))
    begin = magic + struct.pack("<IQQ", version, count, pair_count)
    return begin + b"".join(pairs) + b"".join(tensors)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + b"\0" * (-len(data) % alignment)


def stored(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[array.dtype.name]
    return kind, array.shape, array.tobytes()


def encode(pairs, arrays, alignment: int = 32) -> bytes:
    """Encode a whole valid file.

    `arrays` maps names to arrays of float32 or float16, or to (type, shape, bytes).
    """
    entries, data = [], b""
    for name, array in arrays.items():
        kind, shape, content = array if isinstance(array, tuple) else stored(array)
        entries.append(tensor(name, shape[::-1], CODES[kind], len(data)))
        data = padded(data + content, alignment)
    return padded(header(pairs, entries), alignment) + data


def llama_pairs(heads: int = 4, key_heads: int = 2):
    return [
        pair("general.architecture", STRING, "llama"),
        pair("tokenizer.ggml.tokens", ARRAY, (STRING, [f"token {i}" for i in range(50)])),
        pair("tokenizer.ggml.scores", ARRAY, (FLOAT32, [0.5] * 50)),
        pair("llama.attention.head_count", UINT32, heads),
        pair("llama.attention.head_count_kv", UINT32, key_heads),
        pair("general.quantized", BOOL, 0),
    ]
