"""Write a merged checkpoint: everything is checked first, then one file after the other."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.checkpoint import INDEX_NAME, Checkpoint
from nola_edge.dtypes import safetensors_dtype
from nola_edge.merge.blocks import Buffers, Workers, block_offset, read_merged, row_blocks
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.tied import CONFIG_NAME, untied_config
from nola_edge.merge.update import make_update
from nola_edge.output import AtomicOutput, copy_file, copy_range, pwrite_all, start_writeback
from nola_edge.safetensors_file import encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from nola_edge.merge.update import Update
    from nola_edge.safetensors_file import SafetensorsFile, TensorInfo

_COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class MergeReport:
    """What :func:`merge_checkpoint` wrote.

    Attributes
    ----------
    output : Path
    tensors : int
        Tensors written.
    merged, replaced, added : int
        Of these, how many were merged, replaced by or added from an adapter.
    nbytes : int
        Bytes of all weight files.
    seconds : float
    left_behind : tuple of str
        Weight files in other formats that were not carried over, since they are not merged.
    base_checked : bool
        Whether every adapter recorded a fingerprint of its base, and this is that base.
    """

    output: Path
    tensors: int
    merged: int
    replaced: int
    added: int
    nbytes: int
    seconds: float
    left_behind: tuple[str, ...]
    base_checked: bool


def merge_checkpoint(
    base: str | Path,
    adapter: Any,
    output: str | Path,
    *,
    force: bool = False,
    num_threads: int | None = None,
    check_base: bool = True,
    progress: Callable[[int], None] | None = None,
) -> MergeReport:
    """Merge adapters into a checkpoint and write the result.

    The output has the layout of the base: one file for a file; for a folder the same shards with
    the same headers, and its configuration and tokenizer files. Memory holds a few blocks of rows,
    not a model. The output path is absent (or, with `force`, what it was) until all is written and
    on disk, whatever happens.

    Parameters
    ----------
    base : path
        A safetensors file or a Hugging Face folder; opened read-only.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Several adapters are summed in fp32 and rounded once.
    output : path
        Must not exist, unless `force`; must not lie inside an input.
    force : bool
        Replace an existing output.
    num_threads : int, optional
        Default: the processors this process may use. The bytes do not depend on it.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    progress : callable, optional
        Called, from any thread, with the number of bytes written since the last call.

    Returns
    -------
    MergeReport

    Raises
    ------
    NolaEdgeError
        If an input is not what it claims, adapter and base do not fit, a merged weight is not
        finite, an input changes meanwhile, or the output cannot be written; nothing is left.
    """
    begin = time.perf_counter()
    adapters = load_adapters(adapter)
    with Checkpoint.open(Path(base)) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        companions = checkpoint.companions()
        shards = _plan_shards(plan)
        nbytes = sum(shard.nbytes for shard in shards)
        inputs = [checkpoint.path, *(Path(a.path) for a, _ in adapters if a.path is not None)]
        with AtomicOutput(
            Path(output),
            inputs=inputs,
            force=force,
            directory=checkpoint.is_folder,
            expected_bytes=nbytes,
        ) as out:
            for shard in shards:
                target = out.path / shard.name if checkpoint.is_folder else out.path
                _write_shard(plan, shard, target, num_threads, progress or (lambda _: None))
            if checkpoint.is_folder:
                _write_companions(plan, companions, shards, out.path)
            checkpoint.check_unchanged()
        return MergeReport(
            output=Path(output),
            tensors=len(checkpoint.tensors) + len(plan.added),
            merged=len(plan.merges),
            replaced=len(plan.replaced),
            added=len(plan.added),
            nbytes=nbytes,
            seconds=time.perf_counter() - begin,
            left_behind=tuple(str(path) for path in checkpoint.left_behind()),
            base_checked=check_base and all(a.config.base_fingerprint for a, _ in adapters),
        )


@dataclass(frozen=True)
class _Shard:
    """One output file: the base's file behind a header, then tensors that the base lacks."""

    source: SafetensorsFile
    header: bytes
    added: dict[str, NDArray[Any]]

    @property
    def name(self) -> str:
        return self.source.path.name

    @property
    def shift(self) -> int:
        """How much further back the tensors lie than in the base."""
        return len(self.header) - len(self.source.header_bytes)

    @property
    def nbytes(self) -> int:
        return self.source.size + self.shift + sum(v.nbytes for v in self.added.values())


def _plan_shards(plan: MergePlan) -> list[_Shard]:
    """Keep every header as it is; added tensors go to the end of the last file."""
    shards = [_Shard(file, bytes(file.header_bytes), {}) for file in plan.base.shards]
    if plan.added:
        last = plan.base.shards[-1]
        entries = [
            (info.name, info.dtype, tuple(info.shape), info.nbytes)
            for info in sorted(last.tensors.values(), key=lambda info: (info.start, info.stop))
        ]
        entries += [
            (name, safetensors_dtype(values.dtype), tuple(values.shape), values.nbytes)
            for name, values in plan.added.items()
        ]
        header = encode_header(entries, last.metadata)
        shards[-1] = _Shard(last, header, dict(plan.added))
    return shards


def _write_shard(
    plan: MergePlan,
    shard: _Shard,
    target: Path,
    num_threads: int | None,
    progress: Callable[[int], None],
) -> None:
    """Write one file; pieces of it are written by several threads, each at its own offset."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(fd, shard.nbytes)
        pwrite_all(fd, shard.header, 0)
        progress(len(shard.header))
        writer = _ShardWriter(shard, fd, progress)
        with Workers(num_threads) as workers:
            for begin, end in _untouched_ranges(plan, shard.source):
                for start in range(begin, end, _COPY_BYTES):
                    workers.submit(writer.copy, start, min(start + _COPY_BYTES, end))
            for info in shard.source.tensors.values():
                if info.name in plan.replaced:
                    workers.submit(writer.put, plan.replaced[info.name], info.start + shard.shift)
                elif info.name in plan.merges and info.nbytes:
                    update = make_update(plan.merges[info.name], info.shape, num_threads)
                    for rows in row_blocks(info):
                        workers.submit(writer.merge, info, update, rows)
            offset = shard.source.size + shard.shift
            for values in shard.added.values():
                workers.submit(writer.put, values, offset)
                offset += values.nbytes
    finally:
        os.close(fd)


def _untouched_ranges(plan: MergePlan, source: SafetensorsFile) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of the base's file that are copied, neighbours joined."""
    begin = end = len(source.header_bytes)
    for info in sorted(source.tensors.values(), key=lambda info: (info.start, info.stop)):
        if info.name in plan.merges or info.name in plan.replaced:
            if begin < end:
                yield begin, end
            begin = info.stop
        end = info.stop
    if begin < end:
        yield begin, end


class _ShardWriter:
    """The three kinds of piece an output file is made of. Usable from several threads."""

    def __init__(self, shard: _Shard, fd: int, progress: Callable[[int], None]) -> None:
        self._shard = shard
        self._fd = fd
        self._progress = progress
        self._buffers = Buffers()

    def copy(self, begin: int, end: int) -> None:
        """Copy bytes of the base within the kernel."""
        source = self._shard.source
        offset = begin + self._shard.shift
        copy_range(source.fd, begin, self._fd, offset, end - begin)
        start_writeback(self._fd, offset, end - begin)
        self._progress(end - begin)

    def put(self, values: NDArray[Any], offset: int) -> None:
        """Write a whole tensor."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        pwrite_all(self._fd, data.data, offset)
        self._progress(values.nbytes)

    def merge(self, info: TensorInfo, update: Update, rows: tuple[int, int]) -> None:
        """Merge a block of rows and write it."""
        begin = block_offset(info, rows[0])
        count = block_offset(info, rows[1]) - begin
        block = read_merged(self._shard.source, info, update, rows, self._buffers.get(count))
        offset = info.start + self._shard.shift + begin
        pwrite_all(self._fd, block, offset)
        start_writeback(self._fd, offset, count)
        self._progress(count)


def _write_companions(
    plan: MergePlan, companions: list[Path], shards: list[_Shard], folder: Path
) -> None:
    """Carry over configuration and tokenizer files, and the index of the shards."""
    base = plan.base
    untied = untied_config(plan)
    for relative in companions:
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if untied is not None and relative == Path(CONFIG_NAME):
            target.write_bytes(untied)
        else:
            copy_file(base.path / relative, target)
    if base.index is None:
        return
    data = bytes(base.index_bytes or b"")
    if plan.added:
        index = dict(base.index)
        weight_map = dict(index["weight_map"])
        weight_map.update(dict.fromkeys(plan.added, shards[-1].name))
        metadata = dict(index.get("metadata") or {})
        if isinstance(metadata.get("total_size"), int):
            metadata["total_size"] += sum(values.nbytes for values in plan.added.values())
        index.update(metadata=metadata, weight_map=weight_map)
        data = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    (folder / INDEX_NAME).write_bytes(data)
