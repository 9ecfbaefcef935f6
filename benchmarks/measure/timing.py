"""Measure two ways of doing the same thing, turn by turn, and keep the medians."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Figure:
    """One measured ratio.

    Attributes
    ----------
    name, peer : str
        What was measured, against what.
    ours, theirs : float
        Medians, in seconds (or bytes, for memory).
    target : float
        What the ratio is to reach.
    faster : bool
        True: the ratio is theirs / ours, at least `target`. False: ours / theirs, at most.
    note : str
        Throughput and other context.
    """

    name: str
    peer: str
    ours: float
    theirs: float
    target: float
    faster: bool
    note: str = ""

    @property
    def ratio(self) -> float:
        """Return the measured ratio."""
        return self.theirs / self.ours if self.faster else self.ours / self.theirs

    @property
    def reached(self) -> bool:
        """Whether the target was reached."""
        return self.ratio >= self.target if self.faster else self.ratio <= self.target


def in_turns(
    *functions: Callable[[], object],
    rounds: int,
    prepare: Callable[[], object] | None = None,
) -> list[list[float]]:
    """Return the seconds of functions that run in turns, after one unmeasured turn.

    Parameters
    ----------
    *functions : callable
    rounds : int
    prepare : callable, optional
        Called before every measurement, unmeasured.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, kept in zip(functions, times, strict=True):
            if prepare is not None:
                prepare()
            begin = time.perf_counter()
            function()
            if turn > 0:
                kept.append(time.perf_counter() - begin)
    return times


def alternate(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    prepare: Callable[[], object] | None = None,
) -> tuple[float, float]:
    """Return the median seconds of two functions run in turns; see :func:`in_turns`."""
    first, second = in_turns(ours, theirs, rounds=rounds, prepare=prepare)
    return statistics.median(first), statistics.median(second)
