"""Compare files with those that a merge writes, the tensors in them apart."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError, printable
from nola_edge.files.folder import visible_files
from nola_edge.files.input_file import InputFile
from nola_edge.files.paths import inside
from nola_edge.files.strict_json import MAX_CONFIG_BYTES, loads_object
from nola_edge.merge.audit.report import FileDifference
from nola_edge.merge.layout import companion_contents, output_files
from nola_edge.merge.windows import BLOCK_BYTES

if TYPE_CHECKING:
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.merge.layout import OutputFile
    from nola_edge.merge.plan import MergePlan

_LISTED = 4
#: Of a safetensors header, before its JSON.
_LENGTH_BYTES = 8


def compare_files(plan: MergePlan, candidate: Checkpoint) -> list[FileDifference]:
    """Compare headers, index and companions with what a merge writes.

    Hidden files of the candidate's folder are not looked at: no merge writes any.

    Parameters
    ----------
    plan : MergePlan
    candidate : Checkpoint
        What there is.

    Raises
    ------
    NolaEdgeError
        If a file cannot be read, or a link leads out of a folder.
    """
    base = plan.base
    if base.is_folder != candidate.is_folder:
        have, want = ("file", "folder") if base.is_folder else ("folder", "file")
        detail = f"is a {have}, but a merge writes a {want}"
        return [FileDifference(candidate.path.name, "kind", detail)]
    files = output_files(plan)
    if base.is_folder:
        return _compare_folder(plan, files, candidate)
    header = candidate.shards[0].read_header()
    return _compare_header(candidate.path.name, header, files[0].header)


def _compare_folder(
    plan: MergePlan, files: list[OutputFile], candidate: Checkpoint
) -> list[FileDifference]:
    headers = {Path(file.name): file.header for file in files}
    contents = companion_contents(plan, plan.base.companions(), files)
    there = {Path(shard.path.name): shard for shard in candidate.shards}
    names = set(visible_files(candidate.path))
    found: list[FileDifference] = []
    for path in sorted(names.union(headers, contents)):
        if path not in headers and path not in contents:
            found.append(FileDifference(str(path), "unexpected", "a merge does not write it"))
        elif path not in names:
            found.append(FileDifference(str(path), "missing", "is missing"))
        elif path in contents:
            found += _compare_content(candidate.path, path, contents[path])
        elif path in there:
            found += _compare_header(str(path), there[path].read_header(), headers[path])
        else:
            found.append(FileDifference(str(path), "index", "holds none of the weights"))
    return found


def _compare_header(name: str, have: bytes, want: bytes) -> list[FileDifference]:
    if have == want:
        return []
    where = _differing_keys(have[_LENGTH_BYTES:], want[_LENGTH_BYTES:])
    return [FileDifference(name, "header", f"the header differs in {where or 'its bytes'}")]


def _compare_content(folder: Path, path: Path, want: bytes | Path) -> list[FileDifference]:
    """Compare a file of a folder with bytes, or with the file that it should be a copy of."""
    with contextlib.ExitStack() as stack:
        have = InputFile(inside(folder, str(path)))
        stack.callback(have.close)
        source: _Bytes | InputFile
        if isinstance(want, bytes):
            source = _Bytes(want)
        else:
            source = InputFile(want)
            stack.callback(source.close)
        position = first_difference(have, source)
        if position is None:
            return []
        where = None
        if path.suffix == ".json" and max(have.size, source.size) <= MAX_CONFIG_BYTES:
            where = _differing_keys(_whole(have), _whole(source))
        detail = f"differs in {where}" if where else f"differs from byte {position} on"
        if not where and have.size != source.size:
            detail += f" and has {have.size} bytes instead of {source.size}"
        return [FileDifference(str(path), "content", detail)]


class _Bytes:
    """What is in memory, read as a file is."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


def first_difference(
    have: InputFile | _Bytes, want: InputFile | _Bytes, begin: int = 0, end: int | None = None
) -> int | None:
    """Return the first offset, from `begin` on, at which two files differ, or None.

    With no `end`, one that ends before the other differs where it ends.
    """
    shorter = min(have.size, want.size) if end is None else end
    for start in range(begin, shorter, BLOCK_BYTES):
        blocks = [bytearray(min(BLOCK_BYTES, shorter - start)) for _ in range(2)]
        for file, block in zip((have, want), blocks, strict=True):
            file.read_into(memoryview(block), start)
        if blocks[0] != blocks[1]:
            return start + next(i for i, (a, b) in enumerate(zip(*blocks, strict=True)) if a != b)
    return None if end is not None or have.size == want.size else shorter


def _whole(file: InputFile | _Bytes) -> bytes:
    data = bytearray(file.size)
    file.read_into(memoryview(data), 0)
    return bytes(data)


def _differing_keys(have: bytes, want: bytes) -> str | None:
    """Name the keys in which two JSON objects differ; None if they are none, or very large."""
    if max(len(have), len(want)) > MAX_CONFIG_BYTES:
        return None
    try:
        left, right = (loads_object(data.rstrip(b" "), file="") for data in (have, want))
    except FormatError:
        return None
    absent = object()

    def same(key: str) -> Any:
        return left.get(key, absent) == right.get(key, absent)

    keys = [key for key in {**right, **left} if not same(key)]
    if not keys:
        return "the order or the form of its entries"
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(printable(key) for key in keys[:_LISTED]) + more
