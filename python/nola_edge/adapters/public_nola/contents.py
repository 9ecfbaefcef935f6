"""What a plan is made of: factors to regenerate, and the LoRA layers they make up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.export.alpha import alpha_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.devices import DrawnOn


@dataclass(frozen=True)
class Draw:
    """One ``uniform_(-bound, bound)`` of a tensor of this many elements."""

    size: int
    bound: float


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix that the public code makes of coefficients and a basis.

    Attributes
    ----------
    name : str
        What the checkpoint calls it.
    seed : int
        Of the generator.
    shape : (int, int)
        Of each basis matrix; the basis is drawn as one tensor (k, rows, columns).
    bound : float
        The basis is uniform between -bound and bound.
    coefficients : (k,) float32, float16 or bfloat16
        Their dtype is the basis' too.
    gain : float
        On each basis matrix, in that dtype.
    weight : array of `shape`, optional
        A frozen matrix that is added.
    before : tuple of Draw
        What the same generator draws first.
    """

    name: str
    seed: int
    shape: tuple[int, int]
    bound: float
    coefficients: NDArray[Any]
    gain: float = 1.0
    weight: NDArray[Any] | None = None
    before: tuple[Draw, ...] = ()

    @property
    def dtype(self) -> str:
        """Return safetensors' name of the dtype of coefficients and basis."""
        return safetensors_dtype(self.coefficients.dtype)

    @property
    def num_basis(self) -> int:
        """Return k."""
        return int(self.coefficients.size)

    @property
    def draw(self) -> Draw:
        """Return the draw of the whole basis."""
        return Draw(self.num_basis * math.prod(self.shape), self.bound)

    @property
    def basis(self) -> tuple[object, ...]:
        """Return what the basis depends on: factors with equal ones share it."""
        return (self.seed, self.before, self.num_basis, self.shape, self.bound, self.dtype)


@dataclass(frozen=True)
class Part:
    """A pair of factors that acts on some outputs of a layer.

    Attributes
    ----------
    a, b : Factor
    row : int
        The first output that it adds to.
    transposed : bool
        Whether the factors are (in, r) and (r, out) instead of (r, in) and (out, r).
    """

    a: Factor
    b: Factor
    row: int = 0
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Return r."""
        return self.a.shape[1] if self.transposed else self.a.shape[0]


@dataclass(frozen=True)
class Layer:
    """A layer of the model, and what the public forward adds to it: scaled parts, summed.

    Attributes
    ----------
    module : str
        Its name in the model.
    out_features : int
    parts : tuple of Part
        All of one rank.
    lora_alpha : float
        The scale of each part, times its rank.
    """

    module: str
    out_features: int
    parts: tuple[Part, ...]
    lora_alpha: float

    @property
    def rank(self) -> int:
        """Return the rank of the one LoRA that is the sum of the parts."""
        return sum(part.rank for part in self.parts)

    @property
    def in_features(self) -> int:
        """Return the layer's inputs."""
        rows, cols = self.parts[0].a.shape
        return rows if self.parts[0].transposed else cols

    @property
    def total_alpha(self) -> float:
        """Return the ``lora_alpha`` with which that rank gives the parts' own scale."""
        if len(self.parts) == 1:
            return self.lora_alpha
        return alpha_of(self.lora_alpha / self.parts[0].rank, self.rank)

    def assemble(
        self, matrices: Mapping[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return A (rank, in) and B (out, rank) of the LoRA, given the factors by name."""
        rows = []
        b = np.zeros((self.out_features, self.rank), np.float32)
        col = 0
        for part in self.parts:
            left, right = matrices[part.b.name], matrices[part.a.name]
            if part.transposed:
                left, right = left.T, right.T
            rows.append(right)
            b[part.row : part.row + left.shape[0], col : col + part.rank] = left
            col += part.rank
        return np.concatenate(rows), b


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a checkpoint before a number is drawn.

    Attributes
    ----------
    style : str
    layers : tuple of Layer
    fan_in_fan_out : bool
        For the configuration that is written.
    drawn_on : DrawnOn or None
        Where the basis was drawn, if the checkpoint itself says so.
    head : array (classes, in), optional
        The weight of a trained classifier.
    kept : mapping
        Fields of the configuration that are carried over.
    left_out : int
        Tensors of the base in the file.
    checked : int
        Recorded values that agree, counted in bases.
    """

    style: str
    layers: tuple[Layer, ...]
    fan_in_fan_out: bool = False
    drawn_on: DrawnOn | None = None
    head: NDArray[Any] | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    left_out: int = 0
    checked: int = 0

    @property
    def factors(self) -> list[Factor]:
        """Return the factors of all layers."""
        return [f for layer in self.layers for part in layer.parts for f in (part.a, part.b)]
