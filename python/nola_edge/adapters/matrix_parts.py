"""Parts of factors that stay in their file: rows of one, one turned around, an expert's columns."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from nola_edge.ops import Range


class WindowedMatrix(Protocol):
    """A matrix of which windows are read when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, columns)."""

    def window(self, rows: Range | None, cols: Range | None) -> NDArray[np.float32]:
        """Read some columns of some rows, all by default, widened to float32."""


@dataclass(frozen=True)
class Rows:
    """Rows (start, stop) of a matrix."""

    matrix: WindowedMatrix
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, columns)."""
        return self.stop - self.start, self.matrix.shape[1]

    def window(self, rows: Range | None, cols: Range | None) -> NDArray[np.float32]:
        """Read some columns of some rows."""
        start, stop = rows or (0, self.shape[0])
        return self.matrix.window((self.start + start, self.start + stop), cols)


@dataclass(frozen=True)
class Turned:
    """A matrix with its rows as columns."""

    matrix: WindowedMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, columns)."""
        rows, cols = self.matrix.shape
        return cols, rows

    def window(self, rows: Range | None, cols: Range | None) -> NDArray[np.float32]:
        """Read some columns of some rows."""
        return np.ascontiguousarray(self.matrix.window(cols, rows).T)


@dataclass(frozen=True)
class PartOfStack:
    """One matrix of a stack of them, which is made when it is needed.

    Attributes
    ----------
    stack : callable
        Returns (count, rows, columns) float32.
    number : int
        In the stack.
    shape : (int, int)
    """

    stack: Callable[[], NDArray[np.float32]]
    number: int
    shape: tuple[int, int]

    def window(self, rows: Range | None, cols: Range | None) -> NDArray[np.float32]:
        """Return some columns of some rows."""
        found = self.stack()[self.number, slice(*(rows or (None,))), slice(*(cols or (None,)))]
        return np.ascontiguousarray(found)


class Recent:
    """Keeps what was made last, since neighbours ask for the same; usable from several threads.

    Parameters
    ----------
    size : int
        How many of them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return what belongs to a key, made once as long as it is kept."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return self._kept[key]
