"""Merge what is not stored as the floats that are merged: dequantise, merge, quantise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.errors import NotFiniteError
from nola_edge.files.gguf import tensor_bytes
from nola_edge.files.gguf_types import FLOAT_TYPES
from nola_edge.gguf import blocks
from nola_edge.gguf.quantization import AMPLIFIED, NEAREST, numbers_of
from nola_edge.gguf.survival import Survival, added_up
from nola_edge.merge.blocks import apply_update, read_runs, runs_of
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import Piece
from nola_edge.merge.windows import work_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.numbers import Numbers
    from nola_edge.merge.windows import Window

#: Elements of a window that is dequantised and quantised again.
_WINDOW_ELEMENTS = 1 << 18
#: Requantising takes so many times the bytes of the data, everything in between included.
_IN_BETWEEN = 8


@dataclass(eq=False, repr=False)
class Requantized(Merged):
    """A stored matrix merged by way of float32, and written as another type or again as its own.

    Attributes
    ----------
    kind : str
        The type that is written.
    rounding : str
        Of :data:`ROUNDINGS`; how a quantised type is.
    survived : dict
        First row and column of each piece that was made -> :class:`Survival` of its delta; empty
        where `kind` is a float type.
    """

    kind: str = "F32"
    rounding: str = NEAREST
    survived: dict[tuple[int, int], Survival] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Return the type that is written."""
        return self.kind

    @property
    def survival(self) -> Survival:
        """Return what is left of all that was made, added up in the order of rows, then columns."""
        return added_up(self.survived[at] for at in sorted(self.survived))

    @property
    def window_bytes(self) -> int:
        """Return the bytes of a few hundred thousand elements."""
        return _WINDOW_ELEMENTS * self.info.nbytes // self.info.size

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of the type that is written."""
        return tensor_bytes(self.kind, self.shape[1:])

    @property
    def numbers(self) -> Numbers:
        """Return the numbers of the type that is written."""
        return numbers_of(self.kind)

    @property
    def base_numbers(self) -> Numbers:
        """Return the numbers of the stored type."""
        return numbers_of(self.info.dtype)

    def encode(
        self, values: NDArray[np.float32], base: NDArray[np.float32], stored: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Return the bytes of rows that were merged; see :meth:`Merged.encode`.

        Rows that no adapter changes keep theirs, whoever quantised them.
        """
        if self.kind != self.info.dtype:
            return self._rounded(values, base)
        same = (values == base).all(axis=1)
        if same.all():
            return stored
        rows = self._rounded(values, base)
        rows[same] = stored[same]
        return rows

    def _rounded(self, values: NDArray[np.float32], base: NDArray[np.float32]) -> NDArray[np.uint8]:
        if self.rounding == AMPLIFIED and self.kind not in FLOAT_TYPES:
            return blocks.quantized_amplified(base, values, self.kind, num_threads=1)
        return self.numbers.encode(values)

    def piece(self, update: LowRank, window: Window) -> Piece:
        """Return the piece that is a window of the columns of an update."""
        stored = runs_of(self.info, window)
        work = _IN_BETWEEN * work_bytes(self.info, update, window)
        return Piece(
            window.runs(self.row_bytes, self.shape[1]),
            stored.nbytes,
            work,
            partial(read_runs, self.file, self.info, stored),
            partial(self._change, update, window),
        )

    def _change(
        self, update: LowRank, window: Window, data: memoryview, _: memoryview
    ) -> memoryview:
        stored = np.frombuffer(data, np.uint8).reshape(window.shape[0], -1)
        rows = ops.in_specified_environment(lambda: self._requantized(update, window, stored))
        return rows.reshape(-1).data

    def _requantized(
        self, update: LowRank, window: Window, stored: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        base = self.base_numbers.decode(stored)
        wanted = base.copy()
        try:
            apply_update(wanted, update, window)
        except NotFiniteError:
            raise self._refusal(window) from None
        rows = self.encode(wanted, base, stored)
        got = self.numbers.decode(rows)
        survival = Survival.of(base, wanted, got)
        if not math.isfinite(survival.got):
            raise self._refusal(window)
        if self.kind not in FLOAT_TYPES:
            self.survived[window.rows[0], window.cols[0]] = survival
        return rows

    def _refusal(self, window: Window) -> NotFiniteError:
        start, stop = window.rows
        return NotFiniteError(
            f"a merged weight in rows {start}..{stop - 1} is infinite or NaN: the base holds such "
            f"a value there, or base and adapter together are too large for {self.kind}",
            file=self.file.path,
            field=self.info.name,
        )
