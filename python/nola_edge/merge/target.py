"""Where the weight of a module is stored: in which tensor, in which part of it, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nola_edge.merge.row_order import interleaved_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.ops import Range


class Target(NamedTuple):
    """The weight of a module: a stored matrix, or some lines of one.

    A *line* of the matrix holds one output: it is a row, or a column where the weight is stored as
    (in, out).

    Attributes
    ----------
    tensor : str
    out_features, in_features : int
        Of the module.
    transposed : bool
        The weight is stored as (in, out), as GPT-2's Conv1D and embeddings are.
    lines : (start, stop)
        Those that hold the module's outputs, in order.
    head_rows : int or None
        Outputs of an attention head whose two halves alternate in the file; None: all in order.
    """

    tensor: str
    out_features: int
    in_features: int
    transposed: bool
    lines: Range
    head_rows: int | None = None

    @classmethod
    def whole(
        cls, tensor: str, shape: tuple[int, ...], transposed: bool, head_rows: int | None = None
    ) -> Target:
        """Return the target that is a whole stored matrix of some shape."""
        rows, cols = shape
        outputs, inputs = (cols, rows) if transposed else (rows, cols)
        return cls(tensor, outputs, inputs, transposed, (0, outputs), head_rows)

    @classmethod
    def part(cls, tensor: str, shape: tuple[int, ...], transposed: bool, lines: Range) -> Target:
        """Return the target that is some lines of a stored matrix of some shape."""
        inputs = shape[0] if transposed else shape[1]
        return cls(tensor, lines[1] - lines[0], inputs, transposed, lines)

    @property
    def features(self) -> tuple[int, int]:
        """Return (out_features, in_features) of the module."""
        return self.out_features, self.in_features

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it is all of a stored matrix of some shape."""
        return self.lines == (0, shape[1] if self.transposed else shape[0])

    def rows_of(
        self, outputs: Callable[[int, int], NDArray[np.float32]], start: int, stop: int
    ) -> NDArray[np.float32]:
        """Return what belongs to lines (start, stop), one row for each.

        Parameters
        ----------
        outputs : callable
            Takes (start, stop) and returns a row for each of these outputs of the module.
        start, stop : int
            Within `lines`.
        """
        start, stop = start - self.lines[0], stop - self.lines[0]
        if self.head_rows is None:
            return outputs(start, stop)
        return interleaved_rows(outputs, self.head_rows, start, stop)
