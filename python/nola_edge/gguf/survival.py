"""How much of an adapter's change survives when a tensor is quantised again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Below this the merge loses more of the adapter than it keeps.
LITTLE = 0.5


@dataclass(frozen=True)
class Survival:
    """Sums of squares from which the share that survives follows; they can be added up.

    Attributes
    ----------
    error : float
        ‖requantised - wanted‖².
    delta : float
        ‖wanted - base‖².
    """

    error: float = 0.0
    delta: float = 0.0

    @classmethod
    def of(
        cls, before: NDArray[np.float32], wanted: NDArray[np.float32], got: NDArray[np.float32]
    ) -> Survival:
        """Compare a block as it was, as it should be, and as it is now."""
        return cls(_squares(got, wanted), _squares(wanted, before))

    @property
    def share(self) -> float | None:
        """Return 1 - ‖requantised - wanted‖ / ‖delta‖: 1 is all of it, 0 or less nothing.

        None if there is no delta.
        """
        if self.delta == 0:
            return None
        return 1 - math.sqrt(self.error / self.delta)

    def __add__(self, other: Survival) -> Survival:
        return Survival(self.error + other.error, self.delta + other.delta)


def _squares(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    difference = one.astype(np.float64) - other
    return float(np.sum(difference * difference))
