"""What an adapter's coefficients look like, which modules it has, what it saves against LoRA."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from nola_edge.adapters.nola import Adapter

#: Levels of a histogram, from nothing to the most; and for terminals without such blocks.
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " .:-=+*#@"

#: A whole part of a module's name that is a number.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Distribution:
    """Summary of a set of coefficients.

    Attributes
    ----------
    count, zeros : int
    mean, std, low, high : float
    histogram : tuple of int
        Counts in equal bins from `low` to `high`.
    """

    count: int
    zeros: int
    mean: float
    std: float
    low: float
    high: float
    histogram: tuple[int, ...]

    @staticmethod
    def of(values: NDArray[np.float32], bins: int = 24) -> Distribution:
        """Summarise finite values, at least one."""
        wide = values.astype(np.float64)
        counts, _ = np.histogram(wide, bins=bins)
        return Distribution(
            count=wide.size,
            zeros=int((wide == 0).sum()),
            mean=float(wide.mean()),
            std=float(wide.std()),
            low=float(wide.min()),
            high=float(wide.max()),
            histogram=tuple(int(c) for c in counts),
        )

    def picture(self, levels: str = BLOCKS) -> str:
        """Draw the histogram in one line; a bin that is not empty is never drawn empty."""
        most = max(self.histogram)
        return "".join(levels[-(-c * (len(levels) - 1) // most)] for c in self.histogram)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Modules whose names differ in numbers only.

    Attributes
    ----------
    name : str
        With a star for each number, unless there is one module only.
    count : int
        How many there are.
    shapes : dict
        Shape of a weight -> how many have it; empty where shapes are not known.
    """

    name: str
    count: int
    shapes: Mapping[tuple[int, ...], int]


@dataclass(frozen=True)
class Compression:
    """Trained parameters of other ways to adapt the same modules.

    Attributes
    ----------
    coefficients : int
        Numbers in this adapter.
    lora_r1, lora_r16 : int
        Numbers in a LoRA of rank 1, and of rank 16, on the same modules.
    full : int
        Numbers in the full weight differences.
    """

    coefficients: int
    lora_r1: int
    lora_r16: int
    full: int


def patterns(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> list[Pattern]:
    """Group names that differ in numbers, such as a layer's, in the order of their first."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    found: dict[str, Counter[tuple[int, ...]]] = {}
    for name in names:
        pattern = _NUMBER.sub("*", name)
        first.setdefault(pattern, name)
        counts[pattern] += 1
        if shapes is not None:
            found.setdefault(pattern, Counter())[shapes[name]] += 1
    unknown: Mapping[tuple[int, ...], int] = {}
    return [
        Pattern(pattern if count > 1 else first[pattern], count, found.get(pattern, unknown))
        for pattern, count in counts.items()
    ]


def all_values(adapter: Adapter, factor: str) -> NDArray[np.float32]:
    """Return all coefficients of one factor, ``"alpha"`` or ``"beta"``, of all modules."""
    return np.concatenate([getattr(c, factor) for c in adapter.modules.values()])


def compression(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> Compression:
    """Compare with LoRA and full differences; `shapes` maps modules to weight shapes."""
    lora_r1 = sum(sum(shapes[module]) for module in adapter.modules)
    return Compression(
        coefficients=adapter.num_coefficients,
        lora_r1=lora_r1,
        lora_r16=16 * lora_r1,
        full=sum(math.prod(shapes[module]) for module in adapter.modules),
    )
