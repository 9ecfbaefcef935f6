"""Factors that are kept from one merge to the next, since expanding them again takes time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from nola_edge.merge.low_rank import Term

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.ops import Range


class KeptFactors:
    """Factors, by what they were computed from, as long as they fit; for several threads.

    If there is no room, the least recently used factor is dropped, but none that the current merge
    has used: what does not fit is computed every time, and pushes nothing out.

    Attributes
    ----------
    most_bytes : int
        That are kept.
    nbytes : int
        That are kept now.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._lock = Lock()
        self._factors: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._used: set[Hashable] = set()

    def begin(self) -> None:
        """Begin another merge."""
        with self._lock:
            self._used.clear()

    def get(self, key: Hashable, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return a factor that is kept, or compute it; nobody may write to it."""
        with self._lock:
            found = self._factors.get(key)
            if found is not None:
                self._factors.move_to_end(key)
                self._used.add(key)
                return found
        factor = compute()
        factor.flags.writeable = False
        with self._lock:
            self._keep(key, factor)
        return factor

    def _keep(self, key: Hashable, factor: NDArray[np.float32]) -> None:
        if key in self._factors:  # another thread was faster
            return
        for oldest in list(self._factors):
            if self.nbytes + factor.nbytes <= self.most_bytes or oldest in self._used:
                break
            self.nbytes -= self._factors.pop(oldest).nbytes
        if self.nbytes + factor.nbytes <= self.most_bytes:
            self._factors[key] = factor
            self._used.add(key)
            self.nbytes += factor.nbytes


@dataclass(frozen=True, eq=False, repr=False)
class KeptTerm(Term):
    """A term whose factors are kept where they take much to compute.

    Attributes
    ----------
    kept : KeptFactors
    """

    kept: KeptFactors

    @classmethod
    def of(cls, term: Term, kept: KeptFactors) -> KeptTerm:
        """Return a term that keeps its factors."""
        return cls(term.adapter, term.module, term.weight, term.target, kept)

    def a(self, cols: Range, num_threads: int | None = None) -> NDArray[np.float32]:
        """Return columns of A; see :class:`~nola_edge.merge.low_rank.Term`."""
        origin = self.adapter.origin(self.module, "A")
        if origin is None:
            return super().a(cols, num_threads)
        key = (origin, self.target, cols)
        return self.kept.get(key, lambda: Term.a(self, cols, num_threads))

    def b(self, lines: Range, num_threads: int | None = None) -> NDArray[np.float32]:
        """Return rows of B; see :class:`~nola_edge.merge.low_rank.Term`."""
        origin = self.adapter.origin(self.module, "B")
        if origin is None:
            return super().b(lines, num_threads)
        key = (origin, self.target, lines)
        return self.kept.get(key, lambda: Term.b(self, lines, num_threads))
