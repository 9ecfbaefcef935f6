"""Read-only GGUF files whose header has been checked completely.

The layout (specification of the ggml project, versions 2 and 3, little-endian): magic, version,
number of tensors, number of key-value pairs; the pairs; name, dimensions, type and offset of each
tensor; padding to the alignment; the tensors in that order, each padded to the alignment. Every
count is compared with the bytes that are left before it is believed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError, printable
from nola_edge.files.gguf_cursor import GgufCursor, read_preamble, read_value
from nola_edge.files.gguf_types import (
    TENSOR_TYPE_NAMES,
    TENSOR_TYPES,
)
from nola_edge.files.input_file import InputFile
from nola_edge.files.signature import BEGIN, refuse_lfs_pointer
from nola_edge.files.tensor_info import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 63  # GGML_MAX_NAME, without its terminator
_MAX_SIZE = 2**63
_MAX_KEY = 65535
#: What is kept of keys.
_MAX_KEY_BYTES = 1 << 22


class GgufFile(InputFile):
    """A GGUF file, opened read-only.

    Attributes
    ----------
    version : int
    metadata : dict
        Key -> number, bool, string, list of numbers, or :class:`LongValue`.
    alignment : int
        Of every tensor, in bytes.
    tensors : dict
        Name -> :class:`TensorInfo`, in the order of the file. `dtype` is ggml's name of the type,
        `shape` is row-major (ggml's dimensions reversed), `start` and `stop` are offsets in the
        file.
    infos_start : int
        Where the file begins to say names, types and offsets of the tensors.
    type_positions : dict
        Name -> where the file says the tensor's type; its offset follows.
    data_start : int
        Where the tensors begin.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.type_positions: dict[str, int] = {}
        try:
            refuse_lfs_pointer(self.read_bytes(min(self.size, BEGIN), 0), self.path)
            cursor = GgufCursor(self)
            self.version, tensors, pairs = read_preamble(cursor)
            for _ in range(pairs):
                self._read_pair(cursor)
            self.alignment = self._read_alignment()
            self.infos_start = cursor.position
            declared = [self._read_tensor(cursor) for _ in range(tensors)]
            self.data_start = padded(cursor.position, self.alignment)
            self._place(declared)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Open a file and check its header completely.

        Raises
        ------
        FormatError
            If it is not a regular file or its header breaks a rule of the format.
        """
        return cls(path)

    def _read_pair(self, cursor: GgufCursor) -> None:
        key = cursor.text("a metadata key", _MAX_KEY)
        cursor.key_bytes += len(key)
        if cursor.key_bytes > _MAX_KEY_BYTES:
            raise cursor.refuse(f"with it the keys take more than {_MAX_KEY_BYTES} bytes", key)
        if key in self.metadata:
            raise cursor.refuse("appears twice", key)
        cursor.key = key
        self.metadata[key] = read_value(cursor, cursor.number("I"))
        cursor.key = None

    def _read_alignment(self) -> int:
        alignment = self.metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 0 < alignment <= _MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise FormatError(
                f"{printable(alignment)} is not a power of two up to {_MAX_ALIGNMENT}",
                file=self.path,
                field=_ALIGNMENT,
                value=alignment,
            )
        return alignment

    def _read_tensor(self, cursor: GgufCursor) -> tuple[str, str, tuple[int, ...], int]:
        name = cursor.text("a tensor's name", _MAX_NAME)
        if name in self.type_positions:
            raise cursor.refuse("appears twice", name)
        dimensions = cursor.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise cursor.refuse(
                f"has {dimensions} dimensions; at most {_MAX_DIMENSIONS} are allowed", name
            )
        sizes = [cursor.number("Q") for _ in range(dimensions)]
        if math.prod(sizes) >= _MAX_SIZE or any(size >= _MAX_SIZE for size in sizes):
            raise cursor.refuse(f"dimensions {sizes} are too large", name)
        self.type_positions[name] = cursor.position
        code = cursor.number("I")
        if code not in TENSOR_TYPE_NAMES:
            raise cursor.refuse(f"has the unknown type {code}", name)
        kind = TENSOR_TYPE_NAMES[code]
        row = sizes[0] if sizes else 1
        if row % TENSOR_TYPES[kind].block:
            raise cursor.refuse(
                f"rows of {row} elements are not whole blocks of {kind}, "
                f"{TENSOR_TYPES[kind].block} elements each",
                name,
            )
        if tensor_bytes(kind, tuple(sizes)) >= _MAX_SIZE:
            raise cursor.refuse(f"dimensions {sizes} are too large", name)
        return name, kind, tuple(reversed(sizes)), cursor.number("Q")

    def _place(self, declared: list[tuple[str, str, tuple[int, ...], int]]) -> None:
        """Check that tensors follow one another, padded, to the file's end; as ggml does."""
        position = 0
        stop = self.data_start
        for name, kind, shape, offset in declared:
            if offset != position:
                raise FormatError(
                    f"has offset {offset}, but the tensors before it end at {position}",
                    file=self.path,
                    field=name,
                    value=offset,
                )
            nbytes = tensor_bytes(kind, shape)
            start = self.data_start + offset
            stop = start + nbytes
            if stop > self.size:
                raise FormatError(
                    f"ends at byte {stop}, but the file ends at {self.size}; it is truncated",
                    file=self.path,
                    field=name,
                )
            self.tensors[name] = TensorInfo(name, kind, shape, start, stop)
            position = padded(offset + nbytes, self.alignment)
        if self.size > padded(stop, self.alignment):
            raise FormatError(
                f"{self.size - stop} bytes at the end belong to no tensor", file=self.path
            )

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of a ggml type; its rows are whole blocks."""
    return math.prod(shape) // TENSOR_TYPES[kind].block * TENSOR_TYPES[kind].nbytes


def padded(position: int, alignment: int) -> int:
    """Return the next multiple of the alignment."""
    return (position + alignment - 1) // alignment * alignment


def gguf_model_obstacle(path: Path) -> str | None:
    """Say what keeps a path from being replaced by a model in GGUF: it is not one itself."""
    return None if _stated_type(path) == "model" else "is not a GGUF model"


def gguf_lora_obstacle(path: Path) -> str | None:
    """Say what keeps a path from being replaced by an adapter in GGUF: it is not one itself."""
    return None if _stated_type(path) == "adapter" else "is not a GGUF adapter"


def _stated_type(path: Path) -> object:
    """Return what a GGUF file says it is; None if it is not a GGUF file, or is broken."""
    try:
        with GgufFile.open(path) as file:
            return file.metadata.get("general.type", "model")
    except FormatError:
        return None
