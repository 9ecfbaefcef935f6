"""How many threads work, where nobody says it, and where more are asked for than can be."""

from __future__ import annotations

import os
import threading

from nola_edge.arguments import integer

#: As in the core: more gain nothing.
_PER_PROCESSOR = 4

_lock = threading.Lock()
_known = 0


def default_threads() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(num_threads: int | None) -> None:
    """Refuse an invalid number of threads before any work.

    Raises
    ------
    ArgumentError
        If it is neither None nor a positive integer.
    """
    if num_threads is not None:
        integer("num_threads", num_threads, 1, 1 << 16)


def thread_count(num_threads: int | None) -> int:
    """Return how many threads to use: as asked, but at most four for each processor."""
    check_threads(num_threads)
    if num_threads is None:
        return default_threads()
    return min(num_threads, _PER_PROCESSOR * default_threads())


def startable_threads(wanted: int) -> int:
    """Return how many threads can be made beside those there are, at most as many as wanted.

    A limit on threads, or on memory for their stacks, would otherwise be met in the middle of the
    work. What could be made once is taken for granted afterwards.
    """
    global _known  # noqa: PLW0603 - of the process, like the limits
    with _lock:
        if wanted > _known:
            _known = max(_known, _make(wanted))
        return min(wanted, _known)


def _make(wanted: int) -> int:
    done = threading.Event()
    threads: list[threading.Thread] = []
    try:
        while len(threads) < wanted:
            thread = threading.Thread(target=done.wait)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return len(threads)
