"""Merge a stored weight block of rows by block of rows, so that memory stays flat.

A block is read from the file into a small buffer, merged there and handed on while it is still
in cache. Blocks are independent: any thread may take any of them and the bytes are the same.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.pacing import check_stopped, stopped_by
from nola_edge.threads import startable_threads, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.input_file import InputFile
    from nola_edge.merge.update import RowUpdate
    from nola_edge.safetensors_file import TensorInfo

#: Large enough to make a thread's turn worthwhile, small enough to stay in the last-level cache.
BLOCK_BYTES = 4 << 20


def row_blocks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) row ranges of at most about :data:`BLOCK_BYTES`."""
    rows, cols = info.shape
    row_bytes = max(1, cols * info.nbytes // max(1, rows * cols))
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def block_offset(info: TensorInfo, row: int) -> int:
    """Return the offset of a row within the tensor, in bytes."""
    return row * (info.nbytes // info.shape[0]) if info.shape[0] else 0


def read_merged(
    file: InputFile,
    info: TensorInfo,
    update: RowUpdate,
    rows: tuple[int, int],
    out: memoryview,
) -> memoryview:
    """Read rows of a weight into a buffer and merge them there, on the calling thread.

    Parameters
    ----------
    file, info
        Where the weight is stored.
    update : RowUpdate
        For the whole weight.
    rows : (start, stop)
    out : writable memoryview of bytes
        At least as large as the rows.

    Returns
    -------
    memoryview
        The merged bytes, the beginning of `out`.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    begin = block_offset(info, rows[0])
    view = out[: block_offset(info, rows[1]) - begin]
    file.read_into(view, info.start + begin)
    merge_block(view, file.path, info, update, rows)
    return view


def merge_block(
    block: memoryview, path: Path, info: TensorInfo, update: RowUpdate, rows: tuple[int, int]
) -> None:
    """Merge rows of a weight that are in memory, in place, on the calling thread.

    Parameters
    ----------
    block : writable memoryview of bytes
        The rows.
    path, info
        Where the weight is stored, for errors.
    update : RowUpdate
        For the whole weight.
    rows : (start, stop)

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN.
    """
    start, stop = rows
    weight: NDArray[Any] = np.frombuffer(block, dtype=numpy_dtype(info.dtype))
    weight = weight.reshape(stop - start, info.shape[1])
    try:
        ops.merge_(weight, update.left(start, stop), update.right, update.scaling, num_threads=1)
    except NotFiniteError:
        raise NotFiniteError(
            f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such "
            f"a value there, or base and adapter together are too large for {info.dtype}",
            file=path,
            field=info.name,
        ) from None


def submit_merge(
    workers: Workers, file: InputFile, info: TensorInfo, update: RowUpdate, out: memoryview
) -> None:
    """Have a whole weight read into memory and merged there, by as many as are free.

    Parameters
    ----------
    workers : Workers
        What went wrong is raised by them.
    file, info
        Where the weight is stored.
    update : RowUpdate
    out : writable memoryview of bytes
        As large as the weight.
    """
    for rows in row_blocks(info):
        begin = block_offset(info, rows[0])
        workers.submit(read_merged, file, info, update, rows, out[begin:])


class Buffers:
    """One growing buffer for each thread that asks, reused from block to block."""

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, nbytes: int) -> memoryview:
        """Return this thread's buffer, writable, of just so many bytes."""
        buffer: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.size < nbytes:
            buffer = np.empty(nbytes, np.uint8)
            self._local.buffer = buffer
        return buffer.data[:nbytes]


class Workers:
    """A bounded thread pool that stops at the first failure.

    At most a few pieces of work per thread are outstanding, so that producers of work hold
    little memory; leaving the context waits for what was submitted, or, on an exception
    (Ctrl-C included), drops what has not begun and stops the rest at its next piece
    (:mod:`nola_edge.pacing`).
    """

    def __init__(self, num_threads: int | None) -> None:
        self._count = startable_threads(thread_count(num_threads))
        # Where no thread can be made, the caller's does the work.
        self._executor = (
            ThreadPoolExecutor(self._count, thread_name_prefix="nola-edge") if self._count else None
        )
        self._pending: set[Future[object]] = set()
        self._stop = threading.Event()

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        """Queue work, waiting while the queue is full; raise what earlier work raised."""
        check_stopped()
        if self._executor is None:
            work(*args)
            return
        self._drain(2 * self._count)
        self._pending.add(self._executor.submit(self._run, work, *args))

    def _run(self, work: Callable[..., object], *args: Any) -> object:
        with stopped_by(self._stop):
            check_stopped()
            return work(*args)

    def finish(self) -> None:
        """Wait for all work; raise what it raised."""
        self._drain(0)

    def close(self) -> None:
        """Drop what has not begun, stop the rest and wait for that."""
        self._stop.set()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _drain(self, allowed: int) -> None:
        while len(self._pending) > allowed:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()
