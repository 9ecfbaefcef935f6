"""Write the weight files of one merge, or of several of the same base that is read only once.

Or hash one that is never written.

The base is gone through in the order of its bytes. What an output leaves alone is copied within
the kernel, range by range and for every output before the next range, so that the disk is read
once. A weight is read window by window, and each window is merged for every output that changes it
while it is in cache.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.adapters.belongs import location
from nola_edge.errors import NotFiniteError
from nola_edge.files.sinks import HashSink, new_file
from nola_edge.merge.merged import pieces_of_all
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nola_edge.files.atomic import AtomicOutput
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.sinks import Sink
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.layout import OutputFile
    from nola_edge.merge.plan import MergePlan
    from nola_edge.merge.result import Piece, Result
    from nola_edge.merge.windows import Runs


class WeightFile(NamedTuple):
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

    @contextlib.contextmanager
    def make(self) -> Iterator[Sink]:
        """Make the file, and note on leaving that it is complete."""
        with self.output.file(self.name) as path, new_file(path, self.content.nbytes) as sink:
            yield sink


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
        sinks = [stack.enter_context(file.make()) for file in files]
        targets = zip(files, sinks, strict=True)
        writers = [_Writer(file.plan, file.content, sink, progress) for file, sink in targets]
        _write(source, writers, num_threads)


def hash_weights(
    plan: MergePlan, content: OutputFile, num_threads: int | None, progress: Callable[[int], None]
) -> str:
    """Return the SHA-256 of a weight file of a merge, which is not written anywhere.

    Parameters and errors are those of :func:`write_together`.
    """
    sink = HashSink()
    _write(content.source, [_Writer(plan, content, sink, progress)], num_threads)
    return sink.hexdigest()


def _write(source: SafetensorsFile, writers: Sequence[_Writer], num_threads: int | None) -> None:
    """Make what several outputs have of one file of their base; all have sinks of one kind."""
    for writer in writers:
        writer.begin()
    step = writers[0].sink.copy_bytes
    with contextlib.ExitStack() as stack:
        workers = Workers(num_threads)
        stack.callback(workers.close)  # once more: a signal may come as leaving it begins
        stack.enter_context(workers)
        maker = _Maker(workers, num_threads)
        for begin, end, info in _ranges(source, writers):
            results = {}
            if info is not None:
                changing = [writer for writer in writers if writer.plan.changes(info.name)]
                results = {writer: writer.plan.result(info.name) for writer in changing}
            untouched = [writer for writer in writers if writer not in results]
            for start in range(begin, end, step):
                for writer in untouched:
                    workers.submit(writer.copy, start, min(start + step, end))
            if info is not None:
                maker.submit(results, info.start)
        for writer in writers:
            offset = source.size
            for name, tensor in writer.content.added.items():
                maker.submit({writer: writer.plan.result(name)}, offset)
                offset += tensor.nbytes


def _ranges(
    source: SafetensorsFile, writers: Sequence[_Writer]
) -> Iterator[tuple[int, int, TensorInfo | None]]:
    """Yield the bytes behind the header: tensors that some output changes, and what is between."""
    begin = end = source.header_size
    for info in sorted(source.tensors.values(), key=lambda info: (info.start, info.stop)):
        if any(writer.plan.changes(info.name) for writer in writers):
            if begin < end:
                yield begin, end, None
            yield info.start, info.stop, info
            begin = info.stop
        end = info.stop
    if begin < end:
        yield begin, end, None


class _Writer:
    """One output file, made by several threads at once, each at its own offsets.

    Offsets are those of the base's file; the output's lie `shift` bytes further back.
    """

    def __init__(
        self, plan: MergePlan, content: OutputFile, sink: Sink, progress: Callable[[int], None]
    ) -> None:
        self.plan = plan
        self.content = content
        self.sink = sink
        self._shift = content.shift
        self._progress = progress

    @property
    def adapters(self) -> str:
        """Name the adapters, for errors."""
        return " + ".join(str(location(adapter)) for adapter, _ in self.plan.adapters)

    def begin(self) -> None:
        """Write the header."""
        self.sink.write(self.content.header, 0)
        self._progress(len(self.content.header))

    def copy(self, begin: int, end: int) -> None:
        """Copy bytes of the base."""
        self.sink.copy(self.content.source, begin, begin + self._shift, end - begin)
        self._progress(end - begin)

    def write(self, data: memoryview, runs: Runs, begin: int) -> None:
        """Write bytes of a tensor that begins at an offset."""
        for offset, part in runs.parts(data):
            self.sink.write(part, begin + offset + self._shift)
        self._progress(len(data))


class _Maker:
    """Makes the pieces of tensors on several threads, each with two buffers of a piece."""

    def __init__(self, workers: Workers, num_threads: int | None) -> None:
        self._workers = workers
        self._num_threads = num_threads
        self._read = Buffers()
        self._made = Buffers()

    def submit(self, results: Mapping[_Writer, Result], begin: int) -> None:
        """Have made what outputs have for a tensor that begins at an offset of the base."""
        for pieces in self._pieces(results):
            need = max(piece.work for piece in pieces.values())
            self._workers.submit(self._make, pieces, begin, nbytes=need)

    def _pieces(self, results: Mapping[_Writer, Result]) -> Iterator[Mapping[_Writer, Piece]]:
        if len(results) == 1:
            ((writer, result),) = results.items()
            if writer.sink.in_order:
                from nola_edge.merge.in_order import pieces_in_order  # few results are hashed

                return ({writer: p} for p in pieces_in_order(result, self._num_threads))
        return pieces_of_all(results, self._num_threads)

    def _make(self, pieces: Mapping[_Writer, Piece], begin: int) -> None:
        """Read what the pieces have in common once, then make and write each."""
        first = next(iter(pieces.values()))
        data = first.read(self._read.get(first.nbytes))
        for writer, piece in pieces.items():
            out = data if len(pieces) == 1 else self._made.get(len(data))
            try:
                made = piece.change(data, out)
            except NotFiniteError as error:
                error.message += f"; adapter {writer.adapters}"
                raise
            writer.write(made, piece.runs, begin)
