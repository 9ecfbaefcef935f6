"""A bounded thread pool that stops at the first failure, and buffers for its threads."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from functools import partial
from queue import SimpleQueue
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

    A signal's exception may come between any two steps of the caller's thread. So that thread takes
    no lock, and no thread has to be known to be stopped: a piece is done by who claims it first,
    and closing claims all that is left. (``concurrent.futures`` loses a thread whose start is cut
    short, which then works on, and may keep a lock for good.)
    """

    def __init__(self, num_threads: int | None) -> None:
        self._count = startable_threads(thread_count(num_threads))
        self._started = 0
        self._ended: list[None] = []
        self._is_stopped = False
        self._jobs: SimpleQueue[_Piece | None] = SimpleQueue()
        #: What has been submitted, and is not known to be done.
        self._outstanding: list[_Piece] = []
        #: Wakes the caller's thread; what happened is said elsewhere, as a signal may lose this.
        self._news: SimpleQueue[None] = SimpleQueue()

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
        if not self._count:  # where no thread can be made, the caller's does the work
            work(*args)
            return
        self._drain(2 * self._count, max(0, _WORK_BYTES - nbytes))
        piece = _Piece(partial(work, *args), nbytes)
        self._outstanding.append(piece)
        self._jobs.put(piece)
        if self._started < self._count:
            self._start(piece)

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

    def finish(self) -> None:
        """Wait for all work; raise what it raised."""
        self._drain(0, 0)

    def close(self) -> None:
        """Drop what has not begun, stop the rest and wait for that, whatever interrupts it."""
        self._is_stopped = True
        interrupted: BaseException | None = None
        while True:
            try:
                self._wait_for_threads()
                break
            except BaseException as error:  # what works on may write into the caller's memory
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _start(self, piece: _Piece) -> None:
        """Start one more thread or, where that and all others cannot be made, do a piece here."""
        try:
            start_new_thread(self._serve, ())
        except (RuntimeError, MemoryError):
            self._count = self._started
            if not self._count:
                piece.do()
                self.finish()
        else:
            self._started += 1

    def _serve(self) -> None:
        with stopped_by(lambda: self._is_stopped):
            while (piece := self._jobs.get()) is not None:
                piece.do()
                self._news.put(None)
        self._jobs.put(None)  # for the next thread
        self._ended.append(None)
        self._news.put(None)

    def _drain(self, most: int, most_bytes: int) -> None:
        while True:
            for piece in self._outstanding:
                if piece.error is not None:
                    raise piece.error
            left = self._outstanding = [piece for piece in self._outstanding if not piece.is_done]
            if len(left) <= most and sum(piece.nbytes for piece in left) <= most_bytes:
                return
            self._news.get()

    def _wait_for_threads(self) -> None:
        while not all(piece.is_over() for piece in self._outstanding):
            self._news.get()
        self._jobs.put(None)
        while len(self._ended) < self._started:
            self._news.get()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


class _Piece:
    """Work that is done by the first who claims it, or by nobody."""

    def __init__(self, work: Callable[[], object], nbytes: int) -> None:
        self.nbytes = nbytes
        self.error: BaseException | None = None
        self.is_done = False
        self._work = work
        self._claims: dict[None, str] = {}

    def do(self) -> None:
        """Do the work, unless the pool was closed before."""
        if not self._is_claimed_for("work"):
            return
        try:
            check_stopped()
            self._work()
        except BaseException as error:
            self.error = error
        self.is_done = True

    def is_over(self) -> bool:
        """Tell whether the work is done, or will never be, having claimed it for nobody."""
        return self._is_claimed_for("nobody") or self.is_done

    def _is_claimed_for(self, whom: str) -> bool:
        return self._claims.setdefault(None, whom) == whom  # one step, of all threads


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
