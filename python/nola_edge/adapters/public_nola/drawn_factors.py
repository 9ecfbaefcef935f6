"""Factors as they are asked for: drawn once as long as there is room to keep them.

To draw any part of a factor takes all of its random matrices, so whole factors are drawn, those
with the same random matrices together, and kept until newer ones need the room.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.adapters.public_nola.draw import draw_factors
from nola_edge.threads import thread_count
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.contents import Factor
    from nola_edge.adapters.public_nola.devices import DrawnOn

_FLOAT_BYTES = 4
#: Of factors that are kept, of all adapters together.
KEPT_BYTES = 64 << 20
#: Of factors that are drawn at a time.
_DRAWN_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class _Group:
    """Factors that share their random matrices, and are drawn together."""

    factors: list[Factor]

    @property
    def nbytes(self) -> int:
        return _FLOAT_BYTES * self.factors[0].size * len(self.factors)

    @staticmethod
    def of(factors: Iterable[Factor]) -> list[_Group]:
        """Group factors, and cut groups that would be too large: neighbours are wanted together."""
        alike: dict[object, list[Factor]] = defaultdict(list)
        for factor in factors:
            alike[factor.basis].append(factor)
        groups = []
        for found in alike.values():
            most = max(1, _DRAWN_BYTES // (_FLOAT_BYTES * found[0].size))
            groups += [_Group(found[i : i + most]) for i in range(0, len(found), most)]
        return groups


class _Kept:
    """Drawn groups, the one used last at the end, of any adapters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[_Group, dict[Factor, NDArray[np.float32]]] = OrderedDict()
        self._nbytes = 0

    def get(self, group: _Group) -> dict[Factor, NDArray[np.float32]] | None:
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
            return self._groups.get(group)

    def put(self, group: _Group, drawn: dict[Factor, NDArray[np.float32]]) -> None:
        with self._lock:
            self._groups[group] = drawn
            self._nbytes += group.nbytes
            while len(self._groups) > 1 and self._nbytes > KEPT_BYTES:
                self._nbytes -= self._groups.popitem(last=False)[0].nbytes

    def forget(self, groups: Iterable[_Group]) -> None:
        with self._lock:
            for group in groups:
                if self._groups.pop(group, None) is not None:
                    self._nbytes -= group.nbytes


_KEPT = _Kept()


class DrawnFactors:
    """Draws the factors of one adapter, usually in their order; usable from several threads.

    Attributes
    ----------
    advance : callable
        Called with the number of elements drawn since the last call, from any thread.
    num_threads : int or None
        To draw with where nobody says how many. Default: the processors this process may use.
    """

    def __init__(self, factors: Iterable[Factor], drawn_on: DrawnOn) -> None:
        self.advance: Callable[[int], None] = lambda _: None
        self.num_threads: int | None = None
        self._drawn_on = drawn_on
        self._groups = _Group.of(factors)
        self._group_of = {f: group for group in self._groups for f in group.factors}
        self._drawing = threading.Lock()
        weakref.finalize(self, _KEPT.forget, self._groups).atexit = False

    @property
    def elements(self) -> int:
        """Return how many elements of random matrices there are to draw."""
        return sum(group.factors[0].drawn for group in self._groups)

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of factors that it may keep."""
        return min(KEPT_BYTES, sum(group.nbytes for group in self._groups))

    def get(self, factor: Factor, num_threads: int | None = None) -> NDArray[np.float32]:
        """Return A (r, in_features) or B (outputs, r) as :func:`draw_factors` does, read-only.

        With more than one thread, factors that come next are drawn with it.
        """
        group = self._group_of[factor]
        drawn = _KEPT.get(group)
        if drawn is None:
            with self._drawing:
                threads = thread_count(num_threads or self.num_threads)
                drawn = _KEPT.get(group) or self._draw(group, threads)
        return drawn[factor]

    def _draw(self, group: _Group, threads: int) -> dict[Factor, NDArray[np.float32]]:
        if threads == 1:
            return self._draw_one(group)
        with Workers(threads - 1) as workers:
            for other in self._next(group, threads - 1):
                workers.submit(self._draw_one, other)
            return self._draw_one(group)

    def _next(self, group: _Group, count: int) -> Iterator[_Group]:
        """Yield groups behind one, few and small enough to be drawn at the same time."""
        start = self._groups.index(group) + 1
        room = _DRAWN_BYTES - group.nbytes
        for other in self._groups[start : start + count]:
            room -= other.nbytes
            if room < 0:
                return
            if _KEPT.get(other) is None:
                yield other

    def _draw_one(self, group: _Group) -> dict[Factor, NDArray[np.float32]]:
        drawn = ops.in_specified_environment(
            lambda: draw_factors(group.factors, self._drawn_on, self.advance)
        )
        found = dict(zip(group.factors, drawn, strict=True))
        _KEPT.put(group, found)
        return found
