"""Weights that hold several modules, each in lines of its own.

The lines are divided into segments, in each of which the same terms change everything: every
segment is merged as a weight of its own would be, with the same operations in the same order. What
lies between segments is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.errors import MismatchError
from nola_edge.merge.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from nola_edge.merge.low_rank import Term, Update
    from nola_edge.merge.windows import WholeLines
    from nola_edge.ops import Range


def segments(terms: Sequence[Term], shape: tuple[int, ...]) -> list[tuple[Range, Sequence[Term]]]:
    """Divide the lines that terms change into ranges, with the terms that change each.

    Parameters
    ----------
    terms : sequence of Term
        Of one stored weight.
    shape : (int, int)
        Of the weight.

    Raises
    ------
    MismatchError
        If terms take its lines for rows and for columns, and are parts of it.
    """
    if all(term.target.is_whole(shape) for term in terms):
        return [(terms[0].target.lines, terms)]
    if len({term.target.transposed for term in terms}) > 1:
        raise MismatchError(
            "holds several modules, which one adapter takes for rows and another for columns: they "
            "disagree about fan_in_fan_out",
            field=terms[0].target.tensor,
        )
    ends = sorted({end for term in terms for end in term.target.lines})
    divided: list[tuple[Range, Sequence[Term]]] = []
    for lines in pairwise(ends):
        here = tuple(term for term in terms if common(term.target.lines, lines) == lines)
        if here:
            divided.append((lines, here))
    return divided


def lines_name(tensor: str, lines: Range, module: str | None) -> str:
    """Return the name of a module's lines of a tensor."""
    where = f"{tensor}[{lines[0]}:{lines[1]}]"
    return where if module is None else f"{module} in {where}"


def common(one: Range, other: Range) -> Range:
    """Return what two ranges have in common; it may be empty."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return start, max(start, stop)


@dataclass(eq=False, repr=False)
class PartedUpdate:
    """The updates of the segments of a weight, for some of its columns; it is a LowRank.

    As one product it is block-diagonal: `left` and `right` are that, for whoever compares.

    Attributes
    ----------
    updates : tuple of ((start, stop), Update)
        The lines of each segment that `cols` have some of, and its update.
    transposed : bool
        Lines are columns.
    cols : (start, stop)
    needs : WholeLines
        Which lines a window must hold whole.
    threads : int
        That share the work, and the memory for it.
    """

    updates: tuple[tuple[Range, Update], ...]
    transposed: bool
    cols: Range
    needs: WholeLines
    threads: int
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Return the sum of the segments' ranks."""
        return sum(update.rank for _, update in self.updates)

    @property
    def is_one_part(self) -> bool:
        """Return False: each segment has an update of its own."""
        return False

    def parts(self, window: Window) -> Iterator[tuple[Update, Window]]:
        """Yield the update of each segment that a window has some of, with that part of it."""
        for lines, update in self.updates:
            here = common(lines, window.cols if self.transposed else window.rows)
            if here[0] < here[1]:
                rows, cols = (window.rows, here) if self.transposed else (here, window.cols)
                yield update, Window(rows, cols)

    def left(self, start: int, stop: int) -> NDArray[np.float32]:
        """Expand rows of the left factor, (stop - start, rank)."""
        blocks = []
        for lines, update in self.updates:
            rows = (start, stop) if self.transposed else common(lines, (start, stop))
            block = np.zeros((stop - start, update.rank), np.float32)
            if rows[0] < rows[1]:
                block[rows[0] - start : rows[1] - start] = update.left(*rows)
            blocks.append(ops.scaled(block, update.scaling))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((stop - start, 0), np.float32)

    @cached_property
    def right(self) -> NDArray[np.float32]:
        """Return the right factor, (rank, stop - start)."""
        first, end = self.cols
        blocks = [np.zeros((0, end - first), np.float32)]
        for _, update in self.updates:
            block = np.zeros((update.rank, end - first), np.float32)
            block[:, update.cols[0] - first : update.cols[1] - first] = update.right
            blocks.append(block)
        return np.concatenate(blocks)

    def magnitude(self, start: int, stop: int) -> NDArray[Any] | None:
        """Return None: what is scaled is scaled by the segments' own updates."""
        return None
