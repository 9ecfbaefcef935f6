"""What a checkpoint holds, before a number is drawn: factors, and the layers they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.stored import StoredConfig
from nola_edge.dtypes import safetensors_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.devices import DrawnOn
    from nola_edge.files.tensors import Tensor


@dataclass(frozen=True, eq=False)
class Factor:
    """A factor of a layer, which the public code makes of coefficients and random matrices.

    Attributes
    ----------
    name : str
        What the checkpoint calls it.
    seed : int
        Of the generator.
    shape : (int, int)
        Of each random matrix; all are drawn as one tensor (k, rows, columns).
    bound : float
        They are uniform between -bound and bound.
    coefficients : (k,) float32, float16 or bfloat16
        Their dtype is that of the random matrices too.
    gain : float
        On each random matrix, in that dtype.
    weight : Tensor of `shape`, optional
        A frozen matrix that is added.
    before : int
        Elements that the same generator draws first.
    transposed : bool
        Whether the sum is the transposed factor: (in, r) of an A, (r, out) of a B.
    """

    name: str
    seed: int
    shape: tuple[int, int]
    bound: float
    coefficients: NDArray[Any]
    gain: float = 1.0
    weight: Tensor | None = None
    before: int = 0
    transposed: bool = False

    @property
    def dtype(self) -> str:
        """Return safetensors' name of the dtype of coefficients and random matrices."""
        return safetensors_dtype(self.coefficients.dtype)

    @property
    def num_basis(self) -> int:
        """Return k."""
        return int(self.coefficients.size)

    @property
    def size(self) -> int:
        """Return the elements of the factor."""
        return math.prod(self.shape)

    @property
    def drawn(self) -> int:
        """Return the elements of all its random matrices."""
        return self.num_basis * self.size

    @property
    def basis(self) -> tuple[object, ...]:
        """Return what the random matrices depend on: factors with equal ones share them."""
        return (self.seed, self.before, self.num_basis, self.shape, self.bound, self.dtype)


@dataclass(frozen=True)
class Part:
    """A pair of factors that acts on some outputs of a layer.

    Attributes
    ----------
    a, b : Factor
        (r, in) and (outputs, r), or both transposed.
    row : int
        The first output that it adds to.
    """

    a: Factor
    b: Factor
    row: int = 0

    @property
    def rank(self) -> int:
        """Return r."""
        return self.a.shape[self.a.transposed]


@dataclass(frozen=True)
class Layer:
    """A layer of the model, and what the public forward adds to it: scaled parts, summed.

    Attributes
    ----------
    shape : (out_features, in_features)
    parts : tuple of Part
        All of one rank.
    scaling : float
        Of each part.
    """

    shape: tuple[int, int]
    parts: tuple[Part, ...]
    scaling: float

    @staticmethod
    def of_pair(a: Factor, b: Factor, scaling: float) -> Layer:
        """Return a layer with one part that acts on all outputs."""
        return Layer((b.shape[b.transposed], a.shape[not a.transposed]), (Part(a, b),), scaling)

    @property
    def rank(self) -> int:
        """Return the rank of the sum of the parts."""
        return sum(part.rank for part in self.parts)


#: Takes a module and its (out_features, in_features) in a base, and returns the layers as they are
#: if the base is theirs; None if it cannot be.
Resize = Callable[[str, tuple[int, int]], "dict[str, Layer] | None"]


@dataclass(frozen=True)
class Contents(StoredConfig):
    """All of a checkpoint; the public code saves no module whole.

    Attributes
    ----------
    kind : str
        Whose it is: ``"LLaMA (PEFT)"``, ``"GPT-2"`` or ``"vision transformer"``.
    layers : mapping
        Module name in the model -> :class:`Layer`.
    drawn_on : DrawnOn or None
        Where the random matrices were drawn, if the checkpoint itself says so.
    head : Tensor or None
        (classes, in), the weight of a trained classifier.
    base_tensors : int
        Tensors of the frozen base that the file holds too.
    checked : int
        Recorded values that agree, counted in draws.
    resize : Resize or None
        Where no file says how large the layers are.
    """

    kind: str
    layers: Mapping[str, Layer]
    drawn_on: DrawnOn | None = None
    head: Tensor | None = None
    base_tensors: int = 0
    checked: int = 0
    resize: Resize | None = None


def factors_of(layers: Mapping[str, Layer]) -> list[Factor]:
    """Return the factors of all layers, in order."""
    return [f for layer in layers.values() for part in layer.parts for f in (part.a, part.b)]
