"""What is left of an adapter's change when a tensor is quantised again, and what is added to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.gguf import blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

#: Below this part of the change a merge is warned of.
LITTLE = 0.9


class Survival(NamedTuple):
    """Sums from which part and noise follow; see :func:`added_up`.

    Attributes
    ----------
    wanted : float
        ‖wanted - base‖², where wanted is the base with the change, before it is rounded.
    common : float
        ⟨got - base, wanted - base⟩, where got is the result.
    got : float
        ‖got - base‖².
    """

    wanted: float = 0.0
    common: float = 0.0
    got: float = 0.0

    @classmethod
    def of(
        cls, base: NDArray[np.float32], wanted: NDArray[np.float32], got: NDArray[np.float32]
    ) -> Survival:
        """Compare values as they were, as they should be, and as they are now."""
        return cls(*blocks.change_sums(base, wanted, got))

    @property
    def part(self) -> float | None:
        """Return the part of the change that is there: 1 is all of it, 0 none.

        That is its projection, ⟨got - base, wanted - base⟩ / ‖wanted - base‖². None if there is no
        change.
        """
        return self.common / self.wanted if self.wanted else None

    @property
    def noise(self) -> float | None:
        """Return the size of what else is there, relative to the change.

        ‖got - base - part · (wanted - base)‖ / ‖wanted - base‖. None if there is no change.
        """
        part = self.part
        return None if part is None else math.sqrt(max(0.0, self.got / self.wanted - part * part))


def added_up(survivals: Iterable[Survival]) -> Survival:
    """Return the sums of several pieces or tensors, added in their order."""
    return Survival(*map(sum, zip(Survival(), *survivals, strict=True)))
