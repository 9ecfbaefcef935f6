"""A stored matrix with what adapters add to it, made window by window."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from nola_edge.merge.blocks import merge_window, read_runs, runs_of
from nola_edge.merge.low_rank import make_update, needs_of, total_rank
from nola_edge.merge.numbers import FloatNumbers
from nola_edge.merge.result import FromFile, Piece, Stored
from nola_edge.merge.stacks import MergedStack
from nola_edge.merge.windows import strips, windows, work_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import LowRank, Term
    from nola_edge.merge.numbers import Numbers
    from nola_edge.merge.result import Result
    from nola_edge.merge.windows import Window

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(eq=False, repr=False)
class Merged(FromFile):
    """A stored matrix with what adapters add to it, in its own dtype.

    Attributes
    ----------
    file, info
        Where it is stored.
    terms : tuple of Term
        At least one.
    """

    file: Source
    info: TensorInfo
    terms: tuple[Term, ...]

    @property
    def window_bytes(self) -> int | None:
        """Return the bytes that a window may have; None for the default."""
        return None

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row, where there are any."""
        return self.info.nbytes // self.shape[0]

    @property
    def numbers(self) -> Numbers:
        """Return the numbers of its dtype."""
        return FloatNumbers(self.dtype)

    @property
    def base_numbers(self) -> Numbers:
        """Return the numbers of the stored dtype."""
        return FloatNumbers(self.info.dtype)

    def encode(
        self, values: NDArray[np.float32], base: NDArray[np.float32], stored: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Return the bytes of rows, or of some columns of them, that were merged in fp32.

        Parameters
        ----------
        values, base : (n, columns) float32
            As they are merged, and as they were.
        stored : (n, bytes of the columns) uint8
            The bytes that they were.
        """
        return self.numbers.encode(values)

    def update(self, cols: tuple[int, int], num_threads: int | None = None) -> LowRank:
        """Prepare what changes in some columns; see :func:`make_update`."""
        return make_update(self.terms, self.shape, cols, num_threads)

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield windows, strip by strip; see :meth:`Result.pieces`."""
        for update, window in self.windows(num_threads):
            yield self.piece(update, window)

    def windows(self, num_threads: int | None = None) -> Iterator[tuple[LowRank, Window]]:
        """Yield the windows of all strips, each with the update of its columns."""
        for (update,) in _updates([self], num_threads):
            for window in windows(self.info, [update], self.window_bytes):
                yield update, window

    def piece(self, update: LowRank, window: Window) -> Piece:
        """Return the piece that is a window of the columns of an update."""
        runs = runs_of(self.info, window)
        work = work_bytes(self.info, update, window)
        read = partial(read_runs, self.file, self.info, runs)
        return Piece(runs, runs.nbytes, work, read, partial(self._change, update, window))

    def _change(
        self, update: LowRank, window: Window, data: memoryview, out: memoryview
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
    if len(results) == 1:
        ((key, only),) = results.items()
        yield from ({key: piece} for piece in only.pieces(num_threads))
        return
    stacks = {key: result for key, result in results.items() if isinstance(result, MergedStack)}
    matrices = {k: result for k, result in results.items() if isinstance(result, Merged | Stored)}
    for key, result in results.items():
        if key not in stacks and key not in matrices:
            for piece in result.pieces(num_threads):
                yield {key: piece}
    yield from _of_stacks(stacks, num_threads)
    yield from _of_matrices(matrices, num_threads)


def _of_stacks(
    stacks: Mapping[_Key, MergedStack], num_threads: int | None
) -> Iterator[dict[_Key, Piece]]:
    """Yield the pieces of results of one stored stack, matrix by matrix."""
    together = zip(*(stack.matrices for stack in stacks.values()), strict=True)
    for number, matrices in enumerate(together):
        for pieces in _of_matrices(dict(zip(stacks, matrices, strict=True)), num_threads):
            yield {key: stacks[key].placed(piece, number) for key, piece in pieces.items()}


def _of_matrices(
    results: Mapping[_Key, Merged | Stored], num_threads: int | None
) -> Iterator[dict[_Key, Piece]]:
    """Yield the pieces of results of one stored matrix, in the windows of those that merge."""
    merged = {key: result for key, result in results.items() if isinstance(result, Merged)}
    stored = {key: result for key, result in results.items() if isinstance(result, Stored)}
    if not merged:
        blocks = zip(*(result.pieces(num_threads) for result in stored.values()), strict=True)
        yield from (dict(zip(stored, together, strict=True)) for together in blocks)
    for window, pieces in _in_step(list(merged.values()), num_threads):
        unchanged = {key: result.piece(window) for key, result in stored.items()}
        yield {**dict(zip(merged, pieces, strict=True)), **unchanged}


def _in_step(
    results: Sequence[Merged], num_threads: int | None
) -> Iterator[tuple[Window, list[Piece]]]:
    """Yield the windows of a stored matrix, with the piece of each result."""
    for updates in _updates(results, num_threads):
        for window in windows(results[0].info, updates, results[0].window_bytes):
            pairs = zip(results, updates, strict=True)
            yield window, [result.piece(update, window) for result, update in pairs]


def _updates(results: Sequence[Merged], num_threads: int | None) -> Iterator[list[LowRank]]:
    if not results or not results[0].info.nbytes:
        return
    rank = max(total_rank(result.terms) for result in results)
    whole = reduce(or_, (needs_of(result.terms) for result in results))
    for cols in strips(results[0].info, rank, whole):
        yield [result.update(cols, num_threads) for result in results]
