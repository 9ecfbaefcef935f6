"""What an adapter's coefficients look like, and what it saves against LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from nola_edge.adapter.adapter import Adapter

_BARS = " ▁▂▃▄▅▆▇█"


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

    def picture(self) -> str:
        """Draw the histogram in one line; a bin that is not empty is never drawn empty."""
        most = max(self.histogram)
        levels = [-(-c * (len(_BARS) - 1) // most) for c in self.histogram]
        return "".join(_BARS[level] for level in levels)


@dataclass(frozen=True)
class Compression:
    """Trained parameters of other ways to adapt the same modules.

    Attributes
    ----------
    coefficients : int
        Numbers in this adapter.
    lora_r1 : int
        Numbers in a LoRA of rank 1 on the same modules.
    full : int
        Numbers in the full weight differences.
    """

    coefficients: int
    lora_r1: int
    full: int


def all_values(adapter: Adapter, factor: str) -> NDArray[np.float32]:
    """Return all coefficients of one factor, ``"alpha"`` or ``"beta"``, of all modules."""
    return np.concatenate([getattr(c, factor) for c in adapter.modules.values()])


def compression(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> Compression:
    """Compare with LoRA and full differences; `shapes` maps modules to weight shapes."""
    return Compression(
        coefficients=adapter.num_coefficients,
        lora_r1=sum(sum(shapes[module]) for module in adapter.modules),
        full=sum(int(np.prod(shapes[module], dtype=object)) for module in adapter.modules),
    )
