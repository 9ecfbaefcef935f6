"""A place that readers share and a writer has to itself."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from threading import Condition, get_ident
from typing import TYPE_CHECKING

from nola_edge.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gate:
    """Many may be inside, or one may have the place to itself; who waits for that goes first."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._inside: Counter[int] = Counter()  # how often each thread is
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be inside with others."""
        thread = get_ident()
        with self._condition:
            # A thread that is inside already would wait for one that waits for it.
            self._condition.wait_for(lambda: self._waiting == 0 or self._inside[thread] > 0)
            self._inside[thread] += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside[thread] -= 1
                self._inside = +self._inside
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be inside alone.

        Raises
        ------
        ArgumentError
            If this thread is inside already.
        """
        with self._condition:
            if self._inside[get_ident()]:
                raise ArgumentError("cannot switch inside running(); leave it first")
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: not +self._inside)
                yield
            finally:
                self._waiting -= 1
                self._condition.notify_all()
