"""What a merge gives, tensor by tensor, in pieces that any thread makes in any order.

Whoever writes, opens, switches or verifies a result goes over the same pieces. A tensor of a result
is what the base stores (:class:`Stored`), a whole tensor of an adapter (:class:`Whole`), or a
stored one merged window by window (:class:`Merged`). A piece is made in two steps, since several
results of one stored tensor have the first in common: it is read once and changed for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.files.tensors import BLOCK_ELEMENTS
from nola_edge.merge.blocks import merge_window, read_runs, runs_of
from nola_edge.merge.low_rank import make_update, needs_of, total_rank
from nola_edge.merge.windows import BLOCK_BYTES, Runs, strips, windows, work_bytes
from nola_edge.workers import Buffers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.low_rank import RowUpdate, Term
    from nola_edge.merge.windows import Window
    from nola_edge.workers import Workers

_Key = TypeVar("_Key", bound=Hashable)


class Piece(NamedTuple):
    """Some bytes of a tensor of a result, and what makes them.

    Attributes
    ----------
    runs : Runs
        Where they lie in the tensor.
    nbytes : int
        Of what is read.
    work : int
        Roughly the memory that making them takes, themselves included.
    read : callable
        Takes a buffer of `nbytes`; returns what is read, which is that or memory of its own.
    change : callable
        Takes what was read, and where the result may go: a buffer as large, or what was read
        itself. Returns the result, which is that or memory of its own.
    """

    runs: Runs
    nbytes: int
    work: int
    read: Callable[[memoryview], memoryview]
    change: Callable[[memoryview, memoryview], memoryview]

    def make(self, buffer: memoryview) -> memoryview:
        """Return the bytes, in a buffer of `nbytes` or in memory of their own.

        Raises
        ------
        NotFiniteError
            If a merged element is infinite or NaN.
        """
        data = self.read(buffer)
        return self.change(data, data)


class Result(Protocol):
    """A tensor of a result."""

    @property
    def dtype(self) -> str:
        """Return its dtype, by its container's name for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield what it is made of, each byte in one piece.

        Parameters
        ----------
        num_threads : int, optional
            That will make them; windows are smaller for more. Default: the processors this process
            may use. The bytes do not depend on it.
        """


class FromFile:
    """A tensor of a result that has the dtype and shape of a stored one."""

    info: TensorInfo

    @property
    def dtype(self) -> str:
        """Return the stored dtype."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the stored shape."""
        return tuple(self.info.shape)


@dataclass(frozen=True)
class Stored(FromFile):
    """A tensor as a file holds it."""

    file: InputFile
    info: TensorInfo

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield blocks of the file; see :meth:`Result.pieces`."""
        for begin in range(0, self.info.nbytes, BLOCK_BYTES):
            runs = Runs(begin, min(BLOCK_BYTES, self.info.nbytes - begin))
            read = partial(read_runs, self.file, self.info, runs)
            yield Piece(runs, runs.nbytes, runs.nbytes, read, _unchanged)


@dataclass(frozen=True)
class Whole:
    """A tensor that an adapter brings."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        """Return its dtype, by safetensors' name."""
        return safetensors_dtype(self.tensor.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return tuple(self.tensor.shape)

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield blocks of elements; see :meth:`Result.pieces`."""
        size = self.tensor.dtype.itemsize
        for start in range(0, self.tensor.size, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, self.tensor.size)
            runs = Runs(start * size, (stop - start) * size)
            # Twice, since it may be stored in another dtype.
            yield Piece(runs, 0, 2 * runs.nbytes, partial(self._read, start, stop), _unchanged)

    def _read(self, start: int, stop: int, _: memoryview) -> memoryview:
        return self.tensor.read(start, stop).view(np.uint8).data


@dataclass(frozen=True)
class Merged(FromFile):
    """A stored matrix with what adapters add to it, in its own dtype.

    Attributes
    ----------
    file, info
        Where it is stored.
    terms : tuple of Term
        At least one.
    """

    file: InputFile
    info: TensorInfo
    terms: tuple[Term, ...]

    def update(self, cols: tuple[int, int], num_threads: int | None = None) -> RowUpdate:
        """Prepare what changes in some columns; see :func:`make_update`."""
        return make_update(self.terms, self.shape, cols, num_threads)

    def updates(self, num_threads: int | None = None) -> Iterator[RowUpdate]:
        """Yield the updates of all strips, one at a time; none where the matrix is empty."""
        for (update,) in _updates([self], num_threads):
            yield update

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield windows, strip by strip; see :meth:`Result.pieces`."""
        for (piece,) in _in_step([self], num_threads):
            yield piece

    def piece(self, update: RowUpdate, window: Window) -> Piece:
        """Return the piece that is a window of the columns of an update."""
        runs = runs_of(self.info, window)
        work = work_bytes(self.info, [update], window)
        read = partial(read_runs, self.file, self.info, runs)
        return Piece(runs, runs.nbytes, work, read, partial(self._change, update, window))

    def _change(
        self, update: RowUpdate, window: Window, data: memoryview, out: memoryview
    ) -> memoryview:
        if out is not data:
            # Unlike the assignment of memoryviews, numpy's lets other threads run meanwhile.
            np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(data, np.uint8))
        merge_window(out, self.file.path, self.info, update, window)
        return out


def pieces_of_all(
    results: Mapping[_Key, Result], num_threads: int | None = None
) -> Iterator[dict[_Key, Piece]]:
    """Yield the pieces of several results, those together that lie alike and read the same.

    Parameters
    ----------
    results : mapping
        What several outputs make of one tensor of their base.
    num_threads : int, optional
        As for :meth:`Result.pieces`.
    """
    merged = {key: result for key, result in results.items() if isinstance(result, Merged)}
    for key, result in results.items():
        if key not in merged:
            for piece in result.pieces(num_threads):
                yield {key: piece}
    for pieces in _in_step(list(merged.values()), num_threads):
        yield dict(zip(merged, pieces, strict=True))


def _in_step(results: Sequence[Merged], num_threads: int | None) -> Iterator[list[Piece]]:
    """Yield the pieces of results of one stored matrix, window by window."""
    for updates in _updates(results, num_threads):
        for window in windows(results[0].info, updates):
            yield [r.piece(update, window) for r, update in zip(results, updates, strict=True)]


def _updates(results: Sequence[Merged], num_threads: int | None) -> Iterator[list[RowUpdate]]:
    if not results or not results[0].info.nbytes:
        return
    rank = max(total_rank(result.terms) for result in results)
    whole = reduce(or_, (needs_of(result.terms) for result in results))
    for cols in strips(results[0].info, rank, whole):
        yield [result.update(cols, num_threads) for result in results]


def fill(
    result: Result, memory: memoryview, workers: Workers, num_threads: int | None = None
) -> None:
    """Have a whole tensor made in memory, by as many threads as are free.

    Parameters
    ----------
    result : Result
    memory : writable memoryview of bytes
        As large as the tensor.
    workers : Workers
        What went wrong is raised by them.
    num_threads : int, optional
        As for :meth:`Result.pieces`.
    """
    buffers = Buffers()
    for piece in result.pieces(num_threads):
        workers.submit(_place, piece, memory, buffers, nbytes=piece.work)


def _place(piece: Piece, memory: memoryview, buffers: Buffers) -> None:
    """Make a piece at once where it belongs, if it is read in one run as well."""
    runs = piece.runs
    together = runs.count == 1 and runs.nbytes == piece.nbytes
    end = runs.offset + piece.nbytes
    buffer = memory[runs.offset : end] if together else buffers.get(piece.nbytes)
    made = piece.make(buffer)
    if made is buffer and together:
        return
    for offset, part in runs.parts(made):
        memory[offset : offset + len(part)] = part


def _unchanged(data: memoryview, _: memoryview) -> memoryview:
    return data
