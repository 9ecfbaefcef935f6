"""Read-only GGUF files whose header has been checked completely.

The layout (specification of the ggml project, versions 2 and 3, little-endian): magic, version,
number of tensors, number of key-value pairs; the pairs; name, dimensions, type and offset of each
tensor; padding to the alignment; the tensors in that order, each padded to the alignment. Every
count is compared with the bytes that are left before it is believed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError, printable
from nola_edge.files.gguf_types import (
    ARRAY,
    BOOL,
    STRING,
    TENSOR_TYPE_NAMES,
    TENSOR_TYPES,
    VALUE_FORMATS,
)
from nola_edge.files.input_file import InputFile
from nola_edge.files.safetensors import TensorInfo
from nola_edge.files.signature import MAGIC

if TYPE_CHECKING:
    from pathlib import Path

_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 63  # GGML_MAX_NAME, without its terminator
_MAX_SIZE = 2**63
_MAX_KEY = 65535
#: What is kept of keys, and of strings and arrays of numbers, which otherwise are only walked over.
_MAX_KEY_BYTES = 1 << 22
_KEPT_BYTES = 1 << 20
_KEPT_LENGTH = 4096
_NUMBER_BYTES = 32  # of one number in a list
#: Far more than a vocabulary has, and still walked over in seconds.
_MAX_STRINGS = 1 << 22
_WINDOW = 1 << 20
#: Far more than any model has; a file that is nothing but tiny entries stays cheap.
_MAX_ENTRIES = 1 << 16
_LEAST_PAIR = 8 + 4 + 1  # key length, type, a one-byte value
_LEAST_TENSOR = 8 + 4 + 4 + 8  # name length, number of dimensions, type, offset


@dataclass(frozen=True)
class LongValue:
    """A metadata value that is not kept: a long string, or an array of strings or many numbers."""

    count: int


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
            cursor = _Cursor(self)
            self.version, tensors, pairs = _read_preamble(cursor)
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

    def _read_pair(self, cursor: _Cursor) -> None:
        key = cursor.text("a metadata key", _MAX_KEY)
        cursor.key_bytes += len(key)
        if cursor.key_bytes > _MAX_KEY_BYTES:
            raise cursor.refuse(f"with it the keys take more than {_MAX_KEY_BYTES} bytes", key)
        if key in self.metadata:
            raise cursor.refuse("appears twice", key)
        cursor.key = key
        self.metadata[key] = _read_value(cursor, cursor.number("I"))
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
                f"{printable(alignment)} is no power of two up to {_MAX_ALIGNMENT}",
                file=self.path,
                field=_ALIGNMENT,
                value=alignment,
            )
        return alignment

    def _read_tensor(self, cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
        name = cursor.text("a tensor's name", _MAX_NAME)
        if name in self.type_positions:
            raise cursor.refuse("appears twice", name)
        dimensions = cursor.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise cursor.refuse(f"has {dimensions} dimensions, at most {_MAX_DIMENSIONS}", name)
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
                f"rows of {row} elements are no whole blocks of {kind}, "
                f"{TENSOR_TYPES[kind].block} elements each",
                name,
            )
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
                    f"ends at byte {stop}, the file at {self.size}; it is truncated",
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


class _Cursor:
    """Reads the header from beginning to end through a window of fixed size."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._window = b""
        self._window_start = 0
        self.position = 0
        #: The metadata key that is being read, for errors.
        self.key: str | None = None
        self.key_bytes = 0
        self.strings = 0
        self._kept = 0

    @property
    def left(self) -> int:
        """Return the bytes from here to the end of the file."""
        return self._file.size - self.position

    def refuse(self, message: str, field: str | None = None, value: Any = None) -> FormatError:
        return FormatError(message, file=self._file.path, field=field or self.key, value=value)

    def keep(self, length: int, nbytes: int) -> bool:
        """Tell whether a value is short, and there is room for it among those that are kept."""
        if length > _KEPT_LENGTH or self._kept + nbytes > _KEPT_BYTES:
            return False
        self._kept += nbytes
        return True

    def need(self, count: int, what: str) -> None:
        """Refuse a count of bytes that the file does not have."""
        if count > self.left:
            raise self.refuse(
                f"{what} takes {count} bytes, {self.left} are left; the file is truncated or its "
                "header lies",
                value=count,
            )

    def skip(self, count: int) -> None:
        self.position += count

    def bytes(self, count: int) -> bytes:
        """Return `count` bytes, at most a window."""
        self.need(count, "the header")
        begin = self.position - self._window_start
        if begin < 0 or begin + count > len(self._window):
            window = bytearray(min(max(_WINDOW, count), self.left))
            self._file.read_into(memoryview(window), self.position)
            self._window, self._window_start, begin = bytes(window), self.position, 0
        self.position += count
        return self._window[begin : begin + count]

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))[0]

    def text(self, what: str, longest: int) -> str:
        """Return a name: a short string of UTF-8."""
        length = self.number("Q")
        if not 0 < length <= longest:
            raise self.refuse(f"{what} has {length} bytes, not 1 to {longest}", value=length)
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8") from None


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    if cursor.left < 24:
        raise cursor.refuse(f"has {cursor.left} bytes, too few for a GGUF file")
    if cursor.bytes(4) != MAGIC:
        raise cursor.refuse("does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        reason = "it is big-endian" if swapped in _VERSIONS else "convert the model anew"
        raise cursor.refuse(
            f"{version} is not one of 2 and 3, which are read; {reason}", "version", version
        )
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    for field, what, count, least in (
        ("kv_count", "key-value pairs", pairs, _LEAST_PAIR),
        ("tensor_count", "tensors", tensors, _LEAST_TENSOR),
    ):
        if count > cursor.left // least:
            raise cursor.refuse(
                f"{count} {what} do not fit into {cursor.left} bytes; the file is truncated or "
                "its header lies",
                field,
                count,
            )
        if count > _MAX_ENTRIES:
            raise cursor.refuse(f"{count} {what} are more than {_MAX_ENTRIES}", field, count)
    return version, tensors, pairs


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind == STRING:
        return _read_string(cursor)
    if kind == ARRAY:
        return _read_array(cursor)
    if kind not in VALUE_FORMATS:
        raise cursor.refuse(f"has the unknown value type {kind}", value=kind)
    value = cursor.number(VALUE_FORMATS[kind])
    if kind == BOOL:
        if value > 1:
            raise cursor.refuse(f"is {value}, no bool", value=value)
        return bool(value)
    return value


def _read_string(cursor: _Cursor) -> str | LongValue:
    length = cursor.number("Q")
    cursor.need(length, "a string")
    if not cursor.keep(length, length):
        cursor.skip(length)
        return LongValue(length)
    return cursor.bytes(length).decode(errors="replace")


def _read_array(cursor: _Cursor) -> list[Any] | LongValue:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == STRING:
        cursor.need(8 * count, f"an array of {count} strings")
        cursor.strings += count
        if cursor.strings > _MAX_STRINGS:
            raise cursor.refuse(f"with it there are more than {_MAX_STRINGS} strings", value=count)
        for _ in range(count):
            length = cursor.number("Q")
            cursor.need(length, "a string")
            cursor.skip(length)
        return LongValue(count)
    if kind not in VALUE_FORMATS:
        raise cursor.refuse(f"is an array of the value type {kind}, which is not known", value=kind)
    size = struct.calcsize("<" + VALUE_FORMATS[kind])
    cursor.need(size * count, f"an array of {count} numbers")
    if not cursor.keep(count, _NUMBER_BYTES * count):
        cursor.skip(size * count)
        return LongValue(count)
    return list(struct.unpack(f"<{count}{VALUE_FORMATS[kind]}", cursor.bytes(size * count)))
