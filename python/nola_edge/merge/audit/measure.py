"""Measure in one window after another how a merged weight differs from the right one.

All of it is elementwise in the weight's own ulps, so that tensors of any scale compare. An ulp is
that of the largest of base, found and right value; of a quantised type, it is a step: the largest
scale of their blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.merge.audit.block import dot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nola_edge.merge.audit.block import Block, Floats

#: A change by so many ulps keeps its size when it is rounded.
_LARGE_ULPS = 4.0
_HALF = 0.5
#: What bfloat16 may lose of both factors, the product and the change, 2**-8 each, as a part of
#: all terms …
IMPRECISION = 4 * 2.0**-8
#: … besides these ulps, by which the last rounding may go another way. In F32 those of the sum
#: show as well, and of DoRA's norms.
_ROUNDINGS = {"F32": 16.0}
_FEW_ROUNDINGS = 2.0
#: Roundings go up about as often as down: no more of them than this part beyond the others …
_ONE_SIDED = 0.75
#: … and no more than so many standard deviations of a fair coin.
_DEVIATIONS = 5.0
#: An error of up to an ulp, whatever it is, moves half of the weights by an ulp, and a larger one
#: others by more: no more of them than this part …
_BY_ONE = 0.6
#: … where so many are moved that it is no chance.
_MANY = 256


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
    upward, outward : int
        Elements that are too large less those that are too small; by their absolute values.
    by_one : int
        Elements that are about an ulp from the right value, to the nearest.
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
    upward: int = 0
    outward: int = 0
    by_one: int = 0
    stray: int = 0
    sampled: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def roundings(self) -> float:
        """Return by how many ulps roundings in fp32 may make a weight another."""
        return _ROUNDINGS.get(self.dtype, _FEW_ROUNDINGS)

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

    @property
    def is_systematic(self) -> bool:
        """Tell whether elements differ in a way that roundings do not.

        Nearly all of them to one side, or most of all by an ulp.
        """
        moved = max(abs(self.upward), abs(self.outward))
        chance = _DEVIATIONS * math.sqrt(self.differing)
        if moved > _ONE_SIDED * self.differing + chance:
            return True
        return self.by_one > max(_MANY, _BY_ONE * self.elements)

    def add_block(self, block: Block) -> None:
        """Count a window in."""
        ulps, change = block.ulps_from(block.right), block.change
        found = block.found - block.base
        large = np.abs(change) >= np.float32(_LARGE_ULPS) * block.ulp
        self.elements += ulps.size
        self.not_finite += int(ulps.size - np.count_nonzero(block.finite))
        self.there += dot(found, change)
        self.there_right += dot(block.right - block.base, change)
        self.wanted += dot(change, change)
        self.there_large += dot(found[large], change[large])
        self.wanted_large += dot(change[large], change[large])
        self.largest = max(self.largest, float(ulps.max()))
        self.differing += int(np.count_nonzero(ulps))
        self.beyond += int(np.count_nonzero(ulps > 1))
        self.by_one += int(np.count_nonzero((ulps > _HALF) & (ulps <= 1 + _HALF)))
        residual = block.found - block.right
        signs = np.sign(residual)
        self.upward += int(signs.sum(dtype=np.float64))
        self.outward += int(dot(signs, np.sign(block.right)))
        self.residual += dot(residual, residual)
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
    "residual", "differing", "beyond", "upward", "outward", "by_one", "stray", "sampled",
)  # fmt: skip
