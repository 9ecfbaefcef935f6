"""Which of TinyLoRA's trained vectors belongs to which module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nola_edge import ops
from nola_edge.adapters.torch_normal import standard_normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from nola_edge.adapters.factor_file import FactorFile

#: Relative to the largest number: what 16 bits may take away. PEFT rounds to the base's dtype, and
#: saves in float32 all the same. So many numbers tell a tensor from all others even then.
_TOLERANCE = 1e-2
#: Numbers of a tensor that tell it from all others.
_COMPARED = 16
_UNKNOWN = (
    "is not what projection_seed gives any module, so it is unknown which of the trained "
    "vectors belongs to this module; train with weight_tying=1.0, or merge it with PEFT "
    "(merge_and_unload, then save_pretrained)"
)


@dataclass(frozen=True, eq=False)
class Projection:
    """The random tensor of one module.

    Attributes
    ----------
    name : str
        Of the tensor in the file.
    values : (u, r, r)
        In the dtype of the file.
    """

    name: str
    values: NDArray[np.generic]

    def weighted(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sum of v[i] P[i], (r, r): in double, in order, rounded once to float32."""
        factors, parts = vector.astype(np.float64), self.values.astype(np.float64)

        def total() -> NDArray[np.float32]:
            found = np.zeros(parts.shape[1:])
            for factor, part in zip(factors, parts, strict=True):
                found += factor * part
            return found.astype(np.float32)

        return ops.in_specified_environment(total)

    def places(self, drawn: NDArray[np.float64]) -> list[int]:
        """Return the rows of numbers of variance 1 that are its first ones, but for last bits."""
        expected = drawn / np.sqrt(self.values.shape[1])
        found = self.values.reshape(-1)[:_COMPARED].astype(np.float64)
        tolerance = _TOLERANCE * float(np.abs(found).max())
        return np.flatnonzero(np.abs(expected - found).max(axis=1) <= tolerance).tolist()


class GroupsConfig(Protocol):
    """The fields that say how modules are grouped."""

    @property
    def u(self) -> int:
        """Return how many numbers a vector has."""

    @property
    def weight_tying(self) -> float:
        """Return how much modules share vectors."""

    @property
    def projection_seed(self) -> int:
        """Return the seed of the first module's random tensor."""


def vector_of_each(
    projections: Mapping[str, Projection], config: GroupsConfig, tensors: FactorFile, prefix: str
) -> dict[str, NDArray[np.float32]]:
    """Return the trained vector of each module, (u,) float32.

    Parameters
    ----------
    projections : mapping
        Module name -> its random tensor.
    config : GroupsConfig
    tensors : FactorFile
    prefix : str
        Of the names of the vectors, before their number.

    Raises
    ------
    AdapterError
        If a vector is missing or left over, or it is not known whose one is.
    """
    count = len(projections)
    groups = max(1, round(count * (1 - config.weight_tying)))
    names = {name for name in tensors.file.tensors if name.startswith(prefix)}
    wanted = [f"{prefix}{group}" for group in range(groups)]
    for name in (*wanted, *sorted(names)):
        if name not in names or name not in wanted:
            found = "is missing" if name in wanted else "is left over"
            raise tensors.refusal(
                name,
                f"{found}: weight_tying makes {groups} vectors of {count} modules; the file is not "
                "complete, or belongs to another adapter than its configuration",
            )
    vectors = [tensors.vector(name, config.u).array().astype(np.float32) for name in wanted]
    if groups == 1:
        return dict.fromkeys(projections, vectors[0])
    places = _places(projections, config.projection_seed, tensors)
    size = max(1, count // groups)
    return {module: vectors[min(place // size, groups - 1)] for module, place in places.items()}


def _places(
    projections: Mapping[str, Projection], seed: int, tensors: FactorFile
) -> dict[str, int]:
    """Return the place of each module in the model's order, which has seeded its random tensor."""
    places: dict[str, int] = {}
    drawn: dict[int, NDArray[np.float64]] = {}
    for module, projection in projections.items():
        size = projection.values.size
        if size not in drawn:
            numbers = (standard_normal(seed + place, size) for place in range(len(projections)))
            drawn[size] = np.stack([values[:_COMPARED] for values in numbers])
        fitting = projection.places(drawn[size])
        if len(fitting) != 1 or fitting[0] in places.values():
            raise tensors.refusal(projection.name, _UNKNOWN)
        places[module] = fitting[0]
    return places
