"""What a merge gives, tensor by tensor, in pieces that any thread makes in any order.

Whoever writes, opens, switches or verifies a result goes over the same pieces. A tensor of a result
is what the base stores (:class:`Stored`), a whole tensor of an adapter (:class:`Whole`), or a
stored one merged window by window (:class:`~nola_edge.merge.merged.Merged`). A piece is made in two
steps, since several results of one stored tensor have the first in common: it is read once and
changed for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.files.tensors import BLOCK_ELEMENTS
from nola_edge.merge.blocks import read_runs, runs_of
from nola_edge.merge.windows import BLOCK_BYTES, Runs
from nola_edge.workers import Buffers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.windows import Window
    from nola_edge.workers import Job, Workers


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
    """A tensor of a result that has the dtype and shape of a stored one.

    Attributes
    ----------
    file, info
        Where that is stored.
    """

    file: Source
    info: TensorInfo

    @property
    def dtype(self) -> str:
        """Return the stored dtype."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the stored shape."""
        return tuple(self.info.shape)


# Plain classes: to make a dataclass costs every start of the program half a millisecond.
class Stored(FromFile):
    """A tensor as a file holds it."""

    def __init__(self, file: Source, info: TensorInfo) -> None:
        self.file, self.info = file, info

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield blocks of the file; see :meth:`Result.pieces`."""
        for begin in range(0, self.info.nbytes, BLOCK_BYTES):
            runs = Runs(begin, min(BLOCK_BYTES, self.info.nbytes - begin))
            yield self._piece(runs)

    def piece(self, window: Window) -> Piece:
        """Return the piece that is a window of a matrix, beside those that others merge."""
        return self._piece(runs_of(self.info, window))

    def _piece(self, runs: Runs) -> Piece:
        read = partial(read_runs, self.file, self.info, runs)
        return Piece(runs, runs.nbytes, runs.nbytes, read, _unchanged)


class Whole:
    """A tensor that an adapter brings."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

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
    workers.each(filling(result, memory, Buffers(), num_threads))


def filling(
    result: Result, memory: memoryview, buffers: Buffers, num_threads: int | None = None
) -> Iterator[Job]:
    """Yield the work that makes a whole tensor in memory; see :func:`fill`.

    Parameters
    ----------
    buffers : Buffers
        For pieces that are not read where they belong.
    """
    for piece in result.pieces(num_threads):
        yield partial(place, piece, memory, buffers), piece.work


def place(piece: Piece, memory: memoryview, buffers: Buffers) -> None:
    """Make a piece of a tensor in memory: at once where it belongs, if it is read in one run."""
    runs = piece.runs
    together = runs.number == 1 and runs.nbytes == piece.nbytes
    end = runs.offset + piece.nbytes
    buffer = memory[runs.offset : end] if together else buffers.get(piece.nbytes)
    made = piece.make(buffer)
    if made is buffer and together:
        return
    for offset, part in runs.parts(made):
        memory[offset : offset + len(part)] = part


def _unchanged(data: memoryview, _: memoryview) -> memoryview:
    return data
