"""Write the weight files of one merge, or of several of the same base that is read only once.

The base is gone through in the order of its bytes. What an output leaves alone is copied within
the kernel, range by range and for every output before the next range, so that the disk is read
once. A weight is read window by window, and each window is merged for every output that changes it
while it is in cache.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.belongs import location
from nola_edge.errors import NotFiniteError
from nola_edge.files.copying import copy_range, pwrite_all, start_writeback
from nola_edge.merge.blocks import merge_window, read_runs, runs_of
from nola_edge.merge.low_rank import make_update, needs_of, total_rank
from nola_edge.merge.windows import strips, windows, work_bytes
from nola_edge.pacing import check_stopped
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nola_edge.files.atomic import AtomicOutput
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.layout import OutputFile
    from nola_edge.merge.low_rank import Update
    from nola_edge.merge.plan import MergePlan
    from nola_edge.merge.windows import Runs, Window

_COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class WeightFile:
    """A weight file of one output, made of one file of the base.

    Attributes
    ----------
    plan : MergePlan
    content : OutputFile
    output : AtomicOutput
    name : str
        Of the new file in the output.
    """

    plan: MergePlan
    content: OutputFile
    output: AtomicOutput
    name: str

    def changes(self, name: str) -> bool:
        """Tell whether a tensor of the base is another one in this output."""
        return name in self.plan.merges or name in self.plan.replaced

    @property
    def adapters(self) -> str:
        """Name the adapters, for errors."""
        return " + ".join(str(location(adapter)) for adapter, _ in self.plan.adapters)


def write_together(
    source: SafetensorsFile,
    files: Sequence[WeightFile],
    num_threads: int | None,
    progress: Callable[[int], None],
) -> None:
    """Write what several outputs make of one file of their base.

    Parameters
    ----------
    source : SafetensorsFile
        The file of the base.
    files : sequence of WeightFile
        One for each output; each has a file descriptor open meanwhile.
    num_threads : int, optional
        They share the copies and windows; the bytes do not depend on how many there are.
    progress : callable
        Called, from any thread, with the number of bytes written since the last call.

    Raises
    ------
    NolaEdgeError
        If the base cannot be read, or a merged weight is not finite.
    OSError
        If a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_Writer(file, progress)) for file in files]
        blocks = _Blocks(source)
        workers = stack.enter_context(Workers(num_threads))
        for begin, end, info in _ranges(source, files):
            untouched = [w for w in writers if info is None or not w.file.changes(info.name)]
            for start in range(begin, end, _COPY_BYTES):
                for writer in untouched:
                    workers.submit(writer.copy, start, min(start + _COPY_BYTES, end))
            if info is None:
                continue
            for writer in writers:
                if info.name in writer.file.plan.replaced:
                    workers.submit(writer.put, writer.file.plan.replaced[info.name], info.start)
            merging = [w for w in writers if info.nbytes and info.name in w.file.plan.merges]
            if merging:
                for updates in _updates(info, merging, num_threads):
                    made = [update for _, update in updates]
                    for window in windows(info, made):
                        need = work_bytes(info, made, window)
                        workers.submit(blocks.merge, info, updates, window, nbytes=need)
        for writer in writers:
            offset = source.size
            for values in writer.file.content.added.values():
                workers.submit(writer.put, values, offset)
                offset += values.nbytes


def _updates(
    info: TensorInfo, writers: Sequence[_Writer], num_threads: int | None
) -> Iterator[list[tuple[_Writer, Update]]]:
    """Yield what each output changes in a weight, strip by strip."""
    terms = [writer.file.plan.merges[info.name] for writer in writers]
    whole = reduce(or_, map(needs_of, terms))
    for cols in strips(info, max(map(total_rank, terms)), whole):
        made = [make_update(part, info.shape, cols, num_threads) for part in terms]
        yield list(zip(writers, made, strict=True))


def _ranges(
    source: SafetensorsFile, files: Sequence[WeightFile]
) -> Iterator[tuple[int, int, TensorInfo | None]]:
    """Yield the bytes behind the header: tensors that some output changes, and what is between."""
    begin = end = source.header_size
    for info in sorted(source.tensors.values(), key=lambda info: (info.start, info.stop)):
        if any(file.changes(info.name) for file in files):
            if begin < end:
                yield begin, end, None
            yield info.start, info.stop, info
            begin = info.stop
        end = info.stop
    if begin < end:
        yield begin, end, None


class _Writer:
    """One output file, written by several threads at once, each at its own offsets.

    Offsets are those of the base's file; the output's lie `shift` bytes further back.
    """

    def __init__(self, file: WeightFile, progress: Callable[[int], None]) -> None:
        self.file = file
        self._shift = file.content.shift
        self._progress = progress
        self._fd = -1
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Writer:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = self.file
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(file.output.file(file.name))
            self._fd = os.open(path, flags, 0o666)
            stack.callback(os.close, self._fd)
            os.ftruncate(self._fd, file.content.nbytes)
            pwrite_all(self._fd, file.content.header, 0)
            self._open = stack.pop_all()
        self._progress(len(file.content.header))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def copy(self, begin: int, end: int) -> None:
        """Copy bytes of the base within the kernel."""
        offset = begin + self._shift
        copy_range(self.file.content.source.fd, begin, self._fd, offset, end - begin)
        start_writeback(self._fd, offset, end - begin)
        self._progress(end - begin)

    def put(self, tensor: Tensor, begin: int) -> None:
        """Write a whole tensor."""
        for block in tensor.blocks():
            check_stopped()
            pwrite_all(self._fd, block.view(np.uint8).data, begin + self._shift)
            begin += block.nbytes
            self._progress(block.nbytes)

    def write(self, data: memoryview, runs: Runs, begin: int) -> None:
        """Write merged bytes of a tensor that begins at an offset."""
        for offset, part in runs.parts(data):
            pwrite_all(self._fd, part, begin + offset + self._shift)
        if runs.count == 1:
            start_writeback(self._fd, begin + runs.offset + self._shift, len(data))
        self._progress(len(data))


class _Blocks:
    """Merges windows. Usable from several threads, each with two buffers of a window."""

    def __init__(self, source: SafetensorsFile) -> None:
        self._source = source
        self._read = Buffers()
        self._merged = Buffers()

    def merge(
        self, info: TensorInfo, updates: Sequence[tuple[_Writer, Update]], window: Window
    ) -> None:
        """Read a window once, then merge and write it for every output that changes it."""
        runs = runs_of(info, window)
        block = read_runs(self._source, info, runs, self._read.get(runs.nbytes))
        for writer, update in updates:
            merged = block
            if len(updates) > 1:
                merged = self._merged.get(runs.nbytes)
                # Unlike the assignment of memoryviews, numpy's lets other threads run meanwhile.
                np.copyto(np.frombuffer(merged, np.uint8), np.frombuffer(block, np.uint8))
            try:
                merge_window(merged, self._source.path, info, update, window)
            except NotFiniteError as error:
                error.message += f"; adapter {writer.file.adapters}"
                raise
            writer.write(merged, runs, info.start)
