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
from nola_edge.merge.result import FromFile, Piece
from nola_edge.merge.windows import strips, windows, work_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import RowUpdate, Term
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

    file: InputFile
    info: TensorInfo
    terms: tuple[Term, ...]

    @property
    def window_bytes(self) -> int | None:
        """Return the bytes that a window may have; None for the default."""
        return None

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

    def update(self, cols: tuple[int, int], num_threads: int | None = None) -> RowUpdate:
        """Prepare what changes in some columns; see :func:`make_update`."""
        return make_update(self.terms, self.shape, cols, num_threads)

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield windows, strip by strip; see :meth:`Result.pieces`."""
        for update, window in self.windows(num_threads):
            yield self.piece(update, window)

    def windows(self, num_threads: int | None = None) -> Iterator[tuple[RowUpdate, Window]]:
        """Yield the windows of all strips, each with the update of its columns."""
        for (update,) in _updates([self], num_threads):
            for window in windows(self.info, [update], self.window_bytes):
                yield update, window

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
        for window in windows(results[0].info, updates, results[0].window_bytes):
            yield [r.piece(update, window) for r, update in zip(results, updates, strict=True)]


def _updates(results: Sequence[Merged], num_threads: int | None) -> Iterator[list[RowUpdate]]:
    if not results or not results[0].info.nbytes:
        return
    rank = max(total_rank(result.terms) for result in results)
    whole = reduce(or_, (needs_of(result.terms) for result in results))
    for cols in strips(results[0].info, rank, whole):
        yield [result.update(cols, num_threads) for result in results]
