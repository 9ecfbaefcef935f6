"""Read-only safetensors files whose header has been checked completely.

The check is stricter than the safetensors library's, which accepts duplicate keys.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import BITS, numpy_dtype
from nola_edge.errors import FormatError, printable
from nola_edge.files.input_file import InputFile
from nola_edge.files.json_cursor import Cursor
from nola_edge.files.signature import BEGIN, MAGIC, refuse_lfs_pointer
from nola_edge.files.strict_json import dumps
from nola_edge.files.tensor_info import TensorInfo
from nola_edge.files.torch_file import begins_as_torch, torch_file_refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

#: Far more than any model's header has; the format's own limit is six times as much.
MAX_HEADER_BYTES = 16 << 20
#: As many as an adapter has for every expert of the largest models.
MAX_TENSORS = 100_000
_MAX_METADATA = 1 << 20
_MAX_ENTRY = 8192
_ENTRY_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**63
_MAX_DIMENSIONS = 64
#: The one key of a header that is not a tensor.
METADATA = "__metadata__"


class SafetensorsFile(InputFile):
    """A safetensors file, opened read-only.

    Attributes
    ----------
    header_size : int
        Bytes before the first tensor.
    metadata : dict or None
        ``__metadata__``.
    tensors : dict
        Name -> :class:`TensorInfo`, in the header's order.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        try:
            self.header_size = self._find_header()
            # As text only while it is parsed: it may be as large as everything parsed from it.
            cursor = Cursor(self.read_bytes(self.header_size - 8, 8), file=self.path)
            self.metadata, self.tensors = _parse_header(
                cursor, self.header_size, self.size, self.path
            )
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> SafetensorsFile:
        """Open a file and check its header completely.

        Raises
        ------
        FormatError
            If it is not a regular file or its header breaks a rule of the format.
        """
        return cls(path)

    def read_header(self) -> bytes:
        """Return everything before the first tensor, as it stands in the file."""
        return self.read_bytes(self.header_size, 0)

    def _find_header(self) -> int:
        """Return the bytes of the header, with the length before it."""
        begin = os.pread(self.fd, BEGIN, 0)
        refuse_lfs_pointer(begin, self.path)
        if self.path.suffix == ".gguf" and begin[8:9] != b"{":
            _refuse_as_gguf(begin, self.size, self.path)
        if self.size < 8:
            raise FormatError(
                f"has {self.size} bytes, too few for a safetensors file", file=self.path
            )
        if begin.startswith(MAGIC):
            raise FormatError("is a GGUF file, but a safetensors file is needed", file=self.path)
        if begins_as_torch(begin[:9]):
            raise torch_file_refused(self.path)
        length = int.from_bytes(begin[:8], "little")
        if self.size - 8 >= length > MAX_HEADER_BYTES:
            raise FormatError(
                f"the header claims {length} bytes, more than the limit of {MAX_HEADER_BYTES}; a "
                "model's tensors need far less",
                file=self.path,
                field="header length",
                value=length,
            )
        if length > self.size - 8:
            raise FormatError(
                f"the header claims {length} bytes, the file has {self.size}; "
                "it is truncated or not a safetensors file",
                file=self.path,
                field="header length",
                value=length,
            )
        return 8 + length

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor.

        Raises
        ------
        KeyError, FormatError
            As for :meth:`array`.
        ChangedError
            If the file has become shorter, which would end a process that reads a mapping.
        """
        info = self.tensors[name]
        values: NDArray[Any] = np.empty(info.shape, self.dtype(name))
        self.read_into(values.reshape(-1).view(np.uint8).data, info.start)
        return values

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a tensor's dtype.

        Raises
        ------
        FormatError
            If numpy has no such dtype.
        """
        try:
            return numpy_dtype(self.tensors[name].dtype)
        except TypeError as error:
            raise FormatError(str(error), file=self.path, field=name) from None

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the mapped file.

        Raises
        ------
        KeyError
            If there is no such tensor.
        FormatError
            If numpy has no such dtype.
        """
        info = self.tensors[name]
        dtype = self.dtype(name)
        if info.nbytes == 0:
            empty: NDArray[Any] = np.empty(info.shape, dtype)
            empty.flags.writeable = False
            return empty
        return np.ndarray(info.shape, dtype, buffer=self.mapped(), offset=info.start)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_as_gguf(begin: bytes, size: int, path: Path) -> None:
    """Refuse what is only called a GGUF file as that, and not as another kind of file."""
    if size < len(MAGIC):
        raise FormatError(f"has {size} bytes, too few for a GGUF file; it is truncated", file=path)
    if not begin.startswith(MAGIC):
        raise FormatError("is not a GGUF file: it does not begin with GGUF", file=path)


def _parse_header(
    cursor: Cursor, data_start: int, file_size: int, path: Path
) -> tuple[dict[str, str] | None, dict[str, TensorInfo]]:
    if not cursor.begins_with("{"):
        raise FormatError("the header does not begin with '{'", file=path)
    metadata: Any = None
    tensors: dict[str, TensorInfo] = {}
    for name in cursor.keys(MAX_TENSORS + 1):
        if name == METADATA:
            metadata = cursor.value(_MAX_METADATA)
        else:
            tensors[name] = _parse_entry(name, cursor.value(_MAX_ENTRY), data_start, path)
    cursor.end()
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise FormatError("must map strings to strings", file=path, field=METADATA)
    _check_coverage(tensors.values(), data_start, file_size, path)
    return metadata, tensors


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE


def _parse_entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    def refuse(message: str) -> FormatError:
        return FormatError(message, file=path, field=name)

    if not isinstance(entry, dict) or set(entry) != _ENTRY_FIELDS:
        raise refuse("an entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refuse(f"dtype {printable(dtype)!r} is unknown")
    # More dimensions than numpy has would cost time for their product, and help nobody.
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise refuse(f"shape {printable(shape)} is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise refuse(f"data_offsets {printable(offsets)} are not two offsets")
    begin, end = offsets
    if begin > end:
        raise refuse(f"data_offsets [{begin}, {end}] run backwards")
    # The product may have thousands of digits: compared, never printed.
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise refuse(
            f"shape {printable(shape)} of {dtype} does not take the {end - begin} bytes that "
            "data_offsets give"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _check_coverage(
    tensors: Iterable[TensorInfo], data_start: int, file_size: int, path: Path
) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    position = data_start
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start < position:
            raise FormatError("overlaps another tensor", file=path, field=info.name)
        if info.start > position:
            raise FormatError(
                f"{info.start - position} bytes before it belong to no tensor",
                file=path,
                field=info.name,
            )
        position = info.stop
    if position > file_size:
        raise FormatError(
            f"tensors end at byte {position}, the file at {file_size}; it is truncated", file=path
        )
    if position < file_size:
        raise FormatError(f"{file_size - position} bytes at the end belong to no tensor", file=path)


def encode_header(
    entries: Iterable[tuple[str, str, tuple[int, ...], int]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a header for tensors that follow one another in the given order.

    Parameters
    ----------
    entries : iterable of (name, dtype, shape, nbytes)
    metadata : mapping of str to str, optional

    Returns
    -------
    bytes
        Length, JSON and padding to a multiple of eight bytes.

    Raises
    ------
    FormatError
        If a name or the metadata is not Unicode text, or the header would be too long to be read.
    """
    header: dict[str, Any] = {}
    if metadata is not None:
        header[METADATA] = dict(metadata)
    offset = 0
    for name, dtype, shape, nbytes in entries:
        if name == METADATA:
            raise FormatError("cannot be the name of a tensor", field=name)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    try:
        text = dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"a name or the metadata holds {printable(error.object[error.start])}, half of a "
            "surrogate pair, which no file can hold; correct it",
            field="header",
        ) from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise FormatError(
            f"would take {len(text)} bytes, more than the limit of {MAX_HEADER_BYTES}",
            field="header",
        )
    return len(text).to_bytes(8, "little") + text


def safetensors_obstacle(path: Path) -> str | None:
    """Say what keeps a path from being replaced by a safetensors file: it is not one itself."""
    return "is not a safetensors file" if stated_format(path) is None else None


def stated_format(path: Path) -> str | None:
    """Return a safetensors file's metadata, which may be empty; None if it is not such a file."""
    try:
        with SafetensorsFile.open(path) as file:
            return (file.metadata or {}).get("format", "")
    except FormatError:
        return None
