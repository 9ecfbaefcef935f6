"""Long work in pieces, so that a signal or a failure elsewhere is noticed between them.

A call into the core holds off Python's signal handlers until it returns, and nobody waits minutes
for Ctrl-C. Work that can be cut without changing its bits is cut into pieces that take a fraction
of a second on the machine at hand, whatever its instruction set.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE_SECONDS = 0.2
#: Most by which a piece may outgrow the one before: one that was quick by chance tells little.
_GROWTH = 4
_here = threading.local()
_ending: list[BaseException] = []


class Interrupted(Exception):
    """Work on another thread is not wanted any more; nobody is told."""


@contextmanager
def stopped_by(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Have long work on this thread end soon after something becomes true."""
    _here.is_stopped = is_stopped
    try:
        yield
    finally:
        _here.is_stopped = None


def end_with(error: BaseException) -> None:
    """Have the work of a program end with what its signal handler raises.

    Handlers may be called where whatever they raise is lost, in a destructor or while a module is
    imported; then it is raised again where the work goes on.
    """
    _ending[:] = [error]


def check_stopped() -> None:
    """End the work of this thread if it is not wanted any more.

    Raises
    ------
    Interrupted
        If others stopped it.
    BaseException
        What :func:`end_with` was given.
    """
    is_stopped: Callable[[], bool] | None = getattr(_here, "is_stopped", None)
    if is_stopped is not None and is_stopped():
        raise Interrupted
    if is_stopped is None and _ending:
        raise _ending[0]


def paced(start: int, stop: int, first: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """Yield ranges (begin, end) that follow one another, each sized by the time of the one before.

    Parameters
    ----------
    start, stop : int
        What the ranges make up.
    first : int
        About the length of the first range.
    step : int
        Lengths are multiples of it, but for the last.

    Raises
    ------
    Interrupted
        Between two ranges, if the work of this thread is not wanted any more.
    """
    size = max(step, first // step * step)
    while start < stop:
        check_stopped()
        end = min(stop, start + size)
        begin = time.perf_counter()
        yield start, end
        seconds = max(time.perf_counter() - begin, 1e-9)
        wanted = int((end - start) * min(_PIECE_SECONDS / seconds, _GROWTH))
        size = max(step, wanted // step * step)
        start = end
