"""Reading the header of a GGUF file from beginning to end, within bounds."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError
from nola_edge.files.gguf_types import ARRAY, BOOL, STRING, VALUE_FORMATS
from nola_edge.files.signature import MAGIC

if TYPE_CHECKING:
    from nola_edge.files.input_file import InputFile

_VERSIONS = (2, 3)
#: What is kept of strings and arrays of numbers, which otherwise are only walked over.
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


class GgufCursor:
    """Reads the header from beginning to end through a window of fixed size."""

    def __init__(self, file: InputFile) -> None:
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
        """Return an error about a field, or about the key that is being read."""
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
                f"{what} takes {count} bytes, but only {self.left} are left; the file is truncated "
                "or its header lies",
                value=count,
            )

    def skip(self, count: int) -> None:
        """Go on behind `count` bytes."""
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
        """Return a little-endian number of one of :mod:`struct`'s kinds."""
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


def read_preamble(cursor: GgufCursor) -> tuple[int, int, int]:
    """Return version, number of tensors and number of key-value pairs.

    Raises
    ------
    FormatError
    """
    if cursor.left < 24:
        raise cursor.refuse(f"has {cursor.left} bytes, too few for a GGUF file")
    if cursor.bytes(4) != MAGIC:
        raise cursor.refuse("does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        reason = "it is big-endian" if swapped in _VERSIONS else "convert the model again"
        raise cursor.refuse(
            f"{version} is not 2 or 3, the versions that are supported; {reason}",
            "version",
            version,
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


def read_value(cursor: GgufCursor, kind: int) -> Any:
    """Return a metadata value of a type, or :class:`LongValue`.

    Raises
    ------
    FormatError
    """
    if kind == STRING:
        return _read_string(cursor)
    if kind == ARRAY:
        return _read_array(cursor)
    if kind not in VALUE_FORMATS:
        raise cursor.refuse(f"has the unknown value type {kind}", value=kind)
    value = cursor.number(VALUE_FORMATS[kind])
    if kind == BOOL:
        if value > 1:
            raise cursor.refuse(f"is {value}, not a bool", value=value)
        return bool(value)
    return value


def _read_string(cursor: GgufCursor) -> str | LongValue:
    length = cursor.number("Q")
    cursor.need(length, "a string")
    if not cursor.keep(length, length):
        cursor.skip(length)
        return LongValue(length)
    return cursor.bytes(length).decode(errors="replace")


def _read_array(cursor: GgufCursor) -> list[Any] | LongValue:
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
        raise cursor.refuse(f"is an array of the unknown value type {kind}", value=kind)
    size = struct.calcsize("<" + VALUE_FORMATS[kind])
    cursor.need(size * count, f"an array of {count} numbers")
    if not cursor.keep(count, _NUMBER_BYTES * count):
        cursor.skip(size * count)
        return LongValue(count)
    return list(struct.unpack(f"<{count}{VALUE_FORMATS[kind]}", cursor.bytes(size * count)))
