"""Measure in one window after another how a merged weight differs from the right one.

All of it is elementwise in the weight's own ulps, so that tensors of any scale compare. An ulp is
that of the largest of base, found and right value: where base and change cancel, the small result
cannot be more exact than what it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import safetensors_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Bits of the fraction, and the exponent of the smallest normal number.
_FORMATS = {"F32": (23, -126), "F16": (10, -14), "BF16": (7, -126)}
#: Bits of a float32: those of a power of two, without sign and fraction.
_EXPONENT = np.uint32(0x7F800000)
#: Most ulps that count against a prediction: a few broken elements are not to outvote the rest.
_CAP = 8.0
#: A change by so many ulps keeps its size when it is rounded.
_LARGE_ULPS = 4.0
#: What bfloat16 may lose of both factors, the product and the change, 2**-8 each, as a part of
#: all terms …
IMPRECISION = 4 * 2.0**-8
#: … besides these ulps, by which the last rounding may go another way. In F32 those of the sum
#: show as well, and of DoRA's norms.
_ROUNDINGS = {"F32": 16.0, "F16": 2.0, "BF16": 2.0}


def ulps_at(values: Floats, dtype: str) -> Floats:
    """Return the distance of neighbouring numbers of a dtype at the magnitude of some values.

    Parameters
    ----------
    values : float32
        Finite, not negative.
    dtype : {"F32", "F16", "BF16"}
    """
    fraction, smallest = _FORMATS[dtype]
    powers = (values.view(np.uint32) & _EXPONENT).view(np.float32)
    ulps: Floats = np.maximum(powers, np.float32(2.0**smallest)) * np.float32(2.0**-fraction)
    return ulps


def _dot(left: Floats, right: Floats) -> float:
    """Return the sum of products, in double and without threads of its own."""
    return float(np.einsum("i,i", left.reshape(-1), right.reshape(-1), dtype=np.float64))


class Block:
    """A window of a weight as it was found, with what it should be.

    Attributes
    ----------
    found, base, right, change : (rows, cols) float32
        In the merged file; in the base; after a right merge, rounded; what a right merge adds,
        before it is rounded. Zero where one of them is infinite or NaN.
    ulp : (rows, cols) float32
    reach : (rows, cols) float32
        What the terms of `change` add up to at most, where none cancels another.
    finite : (rows, cols) bool
    """

    def __init__(
        self,
        found: NDArray[Any],
        base: NDArray[Any],
        right: NDArray[Any],
        change: Floats,
        reach: Floats,
    ) -> None:
        self._kind = right.dtype
        self.reach = reach
        parts = [part.astype(np.float32) for part in (found, base, right, change)]
        self.found, self.base, self.right, self.change = parts
        self.finite = np.isfinite(self.found)
        for part in parts[1:]:
            self.finite &= np.isfinite(part)
        largest = np.zeros_like(self.found)
        for part in parts:
            if not self.finite.all():
                part[~self.finite] = 0
            if part is not self.change:
                np.maximum(largest, np.abs(part), out=largest)
        self.ulp = ulps_at(largest, safetensors_dtype(self._kind))

    def rounded(self, values: Floats) -> Floats:
        """Return values rounded to the weight's dtype."""
        return values.astype(self._kind).astype(np.float32)

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
        return _dot(ulps, ulps)


@dataclass
class Measurement:
    """Sums over the windows of a tensor.

    Attributes
    ----------
    dtype : str
    elements : int
        Measured.
    not_finite : int
        Of these, infinite or NaN where they are found or where a right merge has them.
    there, there_right, wanted : float
        Products of the wanted change (before rounding) with the found change, with that of a right
        merge (rounded), and with itself.
    there_large, wanted_large : float
        As `there` and `wanted`, of elements that change by some ulps.
    residual : float
        Sum of the squared differences from a right merge.
    largest : float
        Largest difference from a right merge, in ulps.
    differing, beyond : int
        Elements that are not right, and such as are more than one ulp from it.
    stray : int
        Elements whose difference no rounding explains, not even that of a change in bfloat16.
    sampled : int
        Elements that predictions were compared on.
    errors : dict
        Prediction -> its squared error in ulps, over these.
    """

    dtype: str
    elements: int = 0
    not_finite: int = 0
    there: float = 0.0
    there_right: float = 0.0
    wanted: float = 0.0
    there_large: float = 0.0
    wanted_large: float = 0.0
    residual: float = 0.0
    largest: float = 0.0
    differing: int = 0
    beyond: int = 0
    stray: int = 0
    sampled: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def roundings(self) -> float:
        """Return by how many ulps roundings in fp32 may make a weight another."""
        return _ROUNDINGS[self.dtype]

    @property
    def part(self) -> float:
        """Return the part of the wanted change that was found, NaN where none is wanted."""
        return self.there / self.wanted if self.wanted else float("nan")

    @property
    def right_part(self) -> float:
        """Return the part that a right merge has: 1, but for what rounding takes or adds."""
        return self.there_right / self.wanted if self.wanted else float("nan")

    @property
    def factor(self) -> float:
        """Return what the change was multiplied by, as far as can be told, NaN where it cannot.

        Rounding takes most of a change below an ulp, and so of one that was made smaller more than
        in proportion; larger ones it leaves as they are, on the average.
        """
        if self.wanted_large:
            return self.there_large / self.wanted_large
        return self.there / self.there_right if self.there_right else float("nan")

    def add_block(self, block: Block) -> None:
        """Count a window in."""
        ulps, change = block.ulps_from(block.right), block.change
        found = block.found - block.base
        large = np.abs(change) >= np.float32(_LARGE_ULPS) * block.ulp
        self.elements += ulps.size
        self.not_finite += int(ulps.size - np.count_nonzero(block.finite))
        self.there += _dot(found, change)
        self.there_right += _dot(block.right - block.base, change)
        self.wanted += _dot(change, change)
        self.there_large += _dot(found[large], change[large])
        self.wanted_large += _dot(change[large], change[large])
        self.largest = max(self.largest, float(ulps.max()))
        self.differing += int(np.count_nonzero(ulps))
        self.beyond += int(np.count_nonzero(ulps > 1))
        residual = block.found - block.right
        self.residual += _dot(residual, residual)
        slack = np.float32(IMPRECISION) * block.reach / block.ulp
        self.stray += int(np.count_nonzero(ulps > slack + np.float32(self.roundings)))

    def add_predictions(self, block: Block, predictions: Iterable[tuple[str, Floats]]) -> None:
        """Count in how far a window is from each of some predictions of it."""
        self.sampled += block.found.size
        for name, values in predictions:
            self.errors[name] = self.errors.get(name, 0.0) + block.error(values)

    def add(self, other: Measurement) -> None:
        """Count in what was measured elsewhere in the tensor."""
        self.largest = max(self.largest, other.largest)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for key, error in other.errors.items():
            self.errors[key] = self.errors.get(key, 0.0) + error


_SUMS = (
    "elements", "not_finite", "there", "there_right", "wanted", "there_large", "wanted_large",
    "residual", "differing", "beyond", "stray", "sampled",
)  # fmt: skip
