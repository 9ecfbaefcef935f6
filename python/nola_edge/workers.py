"""A bounded thread pool that stops at the first failure, and buffers for its threads."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.pacing import check_stopped, stopped_by
from nola_edge.threads import startable_threads, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    #: Work, and roughly the memory that it needs in bytes.
    Job = tuple[Callable[[], object], int]

#: What work that is outstanding may need in all.
_WORK_BYTES = 40 << 20


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
        #: What has not begun.
        self._queue: deque[tuple[Future[None], Callable[[], object]]] = deque()
        #: What is outstanding, with the bytes that it needs.
        self._pending: dict[Future[None], int] = {}
        self._stop = threading.Event()

    def submit(self, work: Callable[..., object], *args: Any, nbytes: int = 0) -> None:
        """Queue work, waiting while the queue is full; raise what earlier work raised.

        Parameters
        ----------
        work : callable
        *args
        nbytes : int
            Memory that it needs, for which it waits too.
        """
        check_stopped()
        if self._executor is None:
            work(*args)
            return
        self._drain(2 * self._count, max(0, _WORK_BYTES - nbytes))
        future: Future[None] = Future()
        self._pending[future] = nbytes
        self._queue.append((future, partial(work, *args)))
        try:
            self._executor.submit(self._run_stoppable)
        except (RuntimeError, MemoryError):  # no thread can be made any more
            self._run_next()

    def each(self, jobs: Iterator[Job]) -> None:
        """Queue work of which each thread takes the next piece when it is free.

        For many short pieces: none is handed from thread to thread, nor waited for by itself.

        Parameters
        ----------
        jobs : iterator of (callable, int)
            Advanced by the threads, one at a time.
        """
        shared = _Shared(jobs)
        for _ in range(max(1, self._count)):
            self.submit(shared.work)

    def _run_stoppable(self) -> None:
        with stopped_by(self._stop):
            self._run_next()

    def _run_next(self) -> None:
        """Do the oldest work in the queue, if another thread has not."""
        try:
            future, work = self._queue.popleft()
        except IndexError:
            return
        try:
            check_stopped()
            work()
        except BaseException as error:
            future.set_exception(error)
            raise  # to the caller, if it is the caller's thread
        else:
            future.set_result(None)

    def finish(self) -> None:
        """Wait for all work; raise what it raised."""
        self._drain(0, 0)

    def close(self) -> None:
        """Drop what has not begun, stop the rest and wait for that."""
        self._stop.set()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _drain(self, most: int, most_bytes: int) -> None:
        while len(self._pending) > most or sum(self._pending.values()) > most_bytes:
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                del self._pending[future]
                future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


class _Shared:
    """Work that several threads take from one iterator."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self._nbytes = 0
        self._changed = threading.Condition()

    def work(self) -> None:
        """Do what comes next, until nothing is left."""
        while (job := self._next()) is not None:
            work, nbytes = job
            try:
                work()
            finally:
                self._add(-nbytes)

    def _next(self) -> Job | None:
        """Take a piece, and wait until there is memory for it."""
        check_stopped()
        with self._changed:
            job = next(self._jobs, None)
            nbytes = 0 if job is None else job[1]
            while self._nbytes and self._nbytes + nbytes > _WORK_BYTES:
                self._changed.wait()
            self._nbytes += nbytes
        return job

    def _add(self, nbytes: int) -> None:
        with self._changed:
            self._nbytes += nbytes
            self._changed.notify_all()
