"""The windows that a stored matrix is merged in, so small that memory stays flat whatever the rank.

The columns are cut into strips, whose share of the right factor is expanded once and held; usually
there is one. A strip is cut into windows of some rows, small enough to stay in cache, and such that
their rows of the left factor are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nola_edge.dtypes import MERGEABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import LowRank

_FLOAT_BYTES = 4
#: Large enough to make a thread's turn worthwhile, small enough to stay in the last-level cache.
BLOCK_BYTES = 4 << 20
#: Of the right factor, for one strip.
_STRIP_BYTES = 8 << 20
#: Strips begin at multiples of this, so that no stripe of the generator is cut …
_ALIGNMENT = 64
#: … nor a block of a quantised type.
_BLOCK_ALIGNMENT = 256
#: What the core packs at a time: this, or one panel.
_PACKED_BYTES = 1 << 20
_PANEL_BYTES = 64 * _FLOAT_BYTES
#: What all workers together may hold of blocks, and of left factors.
_ALL_BLOCKS = 24 << 20
_ALL_LEFT = 12 << 20


class Runs(NamedTuple):
    """Bytes of a tensor: `number` runs of equal length, each `stride` bytes after the last.

    Attributes
    ----------
    offset : int
        Of the first, within the tensor.
    length : int
        Bytes of a run.
    number : int
    stride : int
    """

    offset: int
    length: int
    number: int = 1
    stride: int = 0

    @property
    def nbytes(self) -> int:
        """Return the bytes of all runs."""
        return self.length * self.number

    def parts(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield the offset of each run and its part of `data`, which holds all of them."""
        for run in range(self.number):
            begin = run * self.length
            yield self.offset + run * self.stride, data[begin : begin + self.length]


class Window(NamedTuple):
    """Some columns of some rows of a matrix.

    Attributes
    ----------
    rows, cols : (start, stop)
    """

    rows: tuple[int, int]
    cols: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Return where this window lies in one around it."""
        (top, _), (left, _) = outer.rows, outer.cols
        rows, cols = self.rows, self.cols
        return slice(rows[0] - top, rows[1] - top), slice(cols[0] - left, cols[1] - left)

    def runs(self, row_bytes: int, row_length: int) -> Runs:
        """Return where its bytes lie in a matrix.

        Parameters
        ----------
        row_bytes : int
            Of a row of the matrix.
        row_length : int
            Elements of it.
        """
        begin, end = (row_bytes * col // row_length for col in self.cols)
        rows = self.shape[0]
        if end - begin == row_bytes:
            return Runs(self.rows[0] * row_bytes, rows * row_bytes)
        return Runs(self.rows[0] * row_bytes + begin, end - begin, rows, row_bytes)


class WholeLines(NamedTuple):
    """Which lines of a matrix a window must hold whole.

    Attributes
    ----------
    rows, cols : bool
    """

    rows: bool = False
    cols: bool = False

    def __or__(self, other: WholeLines) -> WholeLines:
        return WholeLines(self.rows or other.rows, self.cols or other.cols)


#: What needs no line whole.
ANY = WholeLines()


def strips(info: TensorInfo, rank: int, whole: WholeLines = ANY) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) column ranges, for which the right factor takes a few megabytes.

    Parameters
    ----------
    info : TensorInfo
        Of a matrix that is not empty.
    rank : int
    whole : WholeLines
        With whole rows there is one strip; with whole columns, strips are so narrow that their
        columns are one window.
    """
    rows, cols = info.shape
    if whole.rows:
        yield 0, cols
        return
    most = min(_STRIP_BYTES // (_FLOAT_BYTES * rank), BLOCK_BYTES * info.size // info.nbytes)
    if whole.cols:
        most = min(most, BLOCK_BYTES * info.size // info.nbytes // rows)
    step = _ALIGNMENT if info.dtype in MERGEABLE else _BLOCK_ALIGNMENT
    width = cols if cols <= most else max(step, most // step * step)
    for start in range(0, cols, width):
        yield start, min(start + width, cols)


def windows(
    info: TensorInfo, updates: Iterable[LowRank], most_bytes: int | None = None
) -> Iterator[Window]:
    """Yield the windows of a strip.

    Parameters
    ----------
    info : TensorInfo
        Of a matrix that is not empty.
    updates : iterable of LowRank
        For one strip.
    most_bytes : int, optional
        That a window has, unless it is one row; default: :data:`BLOCK_BYTES`.
    """
    updates = list(updates)
    cols = updates[0].cols
    threads = max(update.threads for update in updates)
    rank = max(1, *(update.rank for update in updates))
    row_bytes = max(1, (cols[1] - cols[0]) * info.nbytes // info.size)
    block = min(most_bytes or BLOCK_BYTES, max(_ALL_BLOCKS // threads, BLOCK_BYTES // 8))
    left = max(_ALL_LEFT // threads, 1 << 20)
    step = max(1, min(block // row_bytes, left // (_FLOAT_BYTES * rank)))
    if any(update.needs.cols for update in updates):
        step = info.shape[0]
    for start in range(0, info.shape[0], step):
        yield Window((start, min(start + step, info.shape[0])), cols)


def strip_memory(info: TensorInfo, rank: int, threads: int, whole: WholeLines = ANY) -> int:
    """Return the bytes of right factors that are held while a weight is merged."""
    start, stop = next(strips(info, rank, whole))
    block = (stop - start) * info.nbytes // info.shape[1]
    # As many windows wait or are worked on; each keeps the right factor of its strip.
    waiting = 2 * threads + 1
    return _FLOAT_BYTES * rank * (stop - start) * min(waiting, waiting * BLOCK_BYTES // block + 2)


def work_bytes(info: TensorInfo, update: LowRank, window: Window) -> int:
    """Return roughly how many bytes merging a window takes, right factors not counted."""
    rows, cols = window.shape
    rank = max(1, update.rank)
    block = rows * cols * info.nbytes // info.size
    # Rows of the left factor and of one adapter's share in it; the core packs some columns.
    packed = max(_PACKED_BYTES, _PANEL_BYTES * rank)
    if update.needs != ANY:
        block += 2 * _FLOAT_BYTES * rows * cols  # in float32, and once more
    return 2 * block + 2 * _FLOAT_BYTES * rank * rows + min(packed, _FLOAT_BYTES * rank * cols)
