"""A window of a merged weight as it was found, beside what it should be."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import NotFiniteError
from nola_edge.merge.blocks import apply_update, read_runs, runs_of
from nola_edge.merge.numbers import FloatNumbers
from nola_edge.merge.windows import ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.merged import Merged
    from nola_edge.merge.numbers import Numbers
    from nola_edge.merge.windows import Window

    Floats = NDArray[np.float32]

#: Most ulps that count against a prediction: a few broken elements are not to outvote the rest.
_CAP = 8.0
#: What programs merge in before they quantise.
_HALVES = ("F16", "BF16")


@dataclass
class Block:
    """A window of a weight as it was found, with what it should be.

    Attributes
    ----------
    found, base, right, change : (rows, cols) float32
        In the merged file; in the base; after a right merge, rounded; what a right merge adds,
        before it is rounded. Zero where one of them is infinite or NaN.
    reach : (rows, cols) float32
        What the terms of `change` add up to at most, where none cancels another.
    ulp : (rows, cols) float32
        Distance of neighbouring numbers.
    rounded : callable
        Takes values and returns them as the weight's dtype has them.
    intermediate : sequence of callables
        The same for float types in which a program may have merged: the weight's own, or halves
        where that is quantised.
    finite : (rows, cols) bool
    """

    found: Floats
    base: Floats
    right: Floats
    change: Floats
    reach: Floats
    ulp: Floats
    rounded: Callable[[Floats], Floats]
    intermediate: Sequence[Callable[[Floats], Floats]]

    def __post_init__(self) -> None:
        parts = self.found, self.base, self.right, self.change
        self.finite = np.isfinite(self.found)
        for part in parts[1:]:
            self.finite &= np.isfinite(part)
        if not self.finite.all():
            for part in parts:
                part[~self.finite] = 0

    def ulps_from(self, values: Floats) -> Floats:
        """Return how many ulps the found values are from others, 0 where they are not finite."""
        ulps = self.found - values
        np.abs(ulps, out=ulps)
        ulps /= self.ulp
        ulps *= self.finite
        return ulps

    def error(self, values: Floats) -> float:
        """Return the sum of squared ulps from a prediction, each element's capped."""
        ulps = np.fmin(self.ulps_from(values), _CAP)  # an overflowing prediction is far off
        return dot(ulps, ulps)


def dot(left: Floats, right: Floats) -> float:
    """Return the sum of products, in double and without threads of its own."""
    return float(np.einsum("i,i", left.reshape(-1), right.reshape(-1), dtype=np.float64))


def read_block(
    result: Merged, found: tuple[Source, TensorInfo], update: LowRank, window: Window
) -> Block:
    """Read a window of a weight and of its base, and merge that.

    Parameters
    ----------
    result : Merged
        What the weight should be.
    found : (Source, TensorInfo)
        Where it is; of the same dtype and shape.
    update : LowRank
        For the window's columns.
    window : Window
    """
    numbers = result.numbers
    stored, there = read_rows(result.file, result.info, window), read_rows(*found, window)
    base = result.base_numbers.decode(stored)
    exact, change, reach = _merge(base, update, window)

    def encode(values: Floats) -> NDArray[np.uint8]:
        return result.encode(values, base, stored)

    right = encode(exact)
    # Where base and change cancel, the small result cannot be more exact than what it came from.
    ulp = np.maximum.reduce([numbers.spacing(rows) for rows in (there, right, encode(base))])
    return Block(
        numbers.decode(there),
        base.copy(),
        numbers.decode(right),
        change,
        reach,
        ulp,
        lambda values: numbers.decode(encode(values)),
        [_rounding(FloatNumbers(dtype)) for dtype in _merged_in(result.dtype)],
    )


def _merge(base: Floats, update: LowRank, window: Window) -> tuple[Floats, Floats, Floats]:
    """Return what a merge gives in fp32, what it adds, and what the terms of that add up to."""
    exact = base.copy()
    with contextlib.suppress(NotFiniteError):  # counted, where it is
        apply_update(exact, update, window)
    factors = update.left(*window.rows), update.right, update.scaling
    reach = reach_of(*factors)
    if update.needs == ANY:
        return exact, change_of(*factors), reach
    return exact, exact - base, reach + np.abs(base)  # DoRA scales what the base has as well


def _merged_in(dtype: str) -> tuple[str, ...]:
    return (dtype,) if dtype in MERGEABLE else _HALVES


def _rounding(numbers: Numbers) -> Callable[[Floats], Floats]:
    return lambda values: numbers.decode(numbers.encode(values))


def read_rows(file: Source, info: TensorInfo, window: Window) -> NDArray[np.uint8]:
    """Return a window of a stored matrix: (rows, bytes of each)."""
    runs = runs_of(info, window)
    data = read_runs(file, info, runs, memoryview(bytearray(runs.nbytes)))
    return np.frombuffer(data, np.uint8).reshape(window.shape[0], -1)


def change_in(result: Merged, window: Window) -> Floats:
    """Return what a right merge adds in a window, before it is rounded."""
    update = result.update(window.cols, 1)
    return change_of(update.left(*window.rows), update.right, update.scaling)


def change_of(left: Floats, right: Floats, scaling: float) -> Floats:
    """Return ``scaling * left @ right`` in fp32, infinite where it is too large for that."""
    change = np.zeros((len(left), right.shape[1]), np.float32)
    with contextlib.suppress(NotFiniteError):  # whoever gets it looks at every element
        ops.merge_(change, left, right, scaling, num_threads=1)
    return change


def reach_of(left: Floats, right: Floats, scaling: float) -> Floats:
    """Return a bound of what the terms of :func:`change_of` add up to, all taken as positive."""
    rows, cols = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=0)
    reach: Floats = np.float32(abs(scaling)) * np.outer(rows, cols)
    return reach
