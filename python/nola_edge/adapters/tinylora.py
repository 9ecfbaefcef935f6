"""TinyLoRA: a few trained numbers between singular vectors of the base's own weights.

    W' = W + B (v[0] P[0] + … + v[u - 1] P[u - 1]) A        (arXiv 2602.04118)

A and B are the largest singular vectors of W, and P is random; all three are in the file, for each
module (PEFT's ``save_projection``). A vector v belongs to a group of modules, and no file says
which: PEFT counts modules in the order of the model. The same count has seeded P, by which it is
found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, kept_open, prefixed_names
from nola_edge.adapters.stored import StoredAdapter
from nola_edge.adapters.tinylora_config import TinyLoraConfig
from nola_edge.adapters.tinylora_groups import Projection, vector_of_each
from nola_edge.adapters.whole_tensors import INPUT_EMBEDDINGS
from nola_edge.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.stored_matrix import StoredMatrix
    from nola_edge.ops import Range

_VECTOR = "base_model.tinylora_v."
_A, _B, _P = ".tinylora_A", ".tinylora_B", ".tinylora_P"
#: Last parts of names of embeddings, whose weights are (tokens, features) whatever layers' are.
_EMBEDDINGS = {name.removesuffix(".weight") for name in INPUT_EMBEDDINGS} | {
    "embeddings",
    "position_embeddings",
    "shared",
    "token_type_embeddings",
    "wpe",
}


@dataclass(frozen=True, eq=False)
class TinyLoraModule:
    """The frozen factors of one module, in their file, and what was trained between them.

    Attributes
    ----------
    a : StoredMatrix
        (r, in_features).
    b : StoredMatrix
        (out_features, r).
    core : (r, r) float32
        The sum of P weighted by v, in double before it is rounded.
    is_embedding : bool
    """

    a: StoredMatrix
    b: StoredMatrix
    core: NDArray[np.float32]
    is_embedding: bool


class TinyLoraAdapter(StoredAdapter[TinyLoraModule]):
    """A TinyLoRA whose factors stay in their file, and are read as they are merged.

    Attributes
    ----------
    config : TinyLoraConfig
    """

    config: TinyLoraConfig

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder
        self.config = TinyLoraConfig.from_json(data, file=folder / CONFIG_NAME)
        with kept_open(folder) as file:
            self._read(FactorFile(file, self.config))

    def _read(self, tensors: FactorFile) -> None:
        vectors = [name for name in tensors.file.tensors if name.startswith(_VECTOR)]
        first: dict[str, str] = {}  # tensor of each module
        rest: dict[str, str] = {}
        for name, local in prefixed_names(tensors.file, apart=vectors):
            module, dot, ending = local.rpartition(".")
            if module and dot + ending in (_A, _B, _P):
                first.setdefault(module, name)
            else:
                rest[name] = local
        if not first:
            raise AdapterError(f"has no factors (no *{_A})", file=tensors.file.path)
        frozen = {
            module: self._frozen(tensors, name, PREFIX + module) for module, name in first.items()
        }
        projections = {module: projection for module, (_, _, projection) in frozen.items()}
        trained = vector_of_each(projections, self.config, tensors, _VECTOR)
        self.modules = {
            module: TinyLoraModule(
                a, b, projection.weighted(trained[module]), _is_embedding(module)
            )
            for module, (a, b, projection) in frozen.items()
        }
        self.take_whole_tensors(tensors, rest)

    def _frozen(
        self, tensors: FactorFile, name: str, stem: str
    ) -> tuple[StoredMatrix, StoredMatrix, Projection]:
        """Return A, B and P of a module, of which the tensor `name` is there."""
        tensors.check_partners(name, stem, (_A, _B))
        if stem + _P not in tensors.file.tensors:
            raise tensors.refusal(
                stem + _P,
                "is missing: the random tensors were not saved, and only they tell which of the "
                "trained vectors belongs to this module; load the adapter where it was trained and "
                "save it with save_projection=True",
            )
        a, b = tensors.matrix(stem + _A), tensors.matrix(stem + _B)
        rank = min(self.config.r, b.shape[0], a.shape[1])
        for ending, found in ((_A, a.shape[0]), (_B, b.shape[1])):
            if found != rank:
                raise tensors.refusal(
                    stem + ending,
                    f"is of rank {found}; r = {self.config.r} in {CONFIG_NAME} makes {rank}: "
                    "correct it there, or take the file that was saved with it",
                )
        p = tensors.tensor(stem + _P, (self.config.u, rank, rank)).array()
        return a, b, Projection(stem + _P, p)

    @property
    def method(self) -> str:
        """Return ``"TinyLoRA"``."""
        return "TinyLoRA"

    def rank(self, module: str) -> int:
        """Return r of a module."""
        return len(self.find(module).core)

    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: Range | None = None,
        num_threads: int | None = None,
        *,
        rows: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return A, or the columns, or rows, (start, stop) of it: float32.

        An embedding's weight is stored as (tokens, features) = (in, out), so that its A is (B R)ᵀ.
        """
        found = self.find(module)
        if found.is_embedding:
            return np.ascontiguousarray(_multiplied(found, cols, rows).T)
        return found.a.window(rows, cols)

    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: Range | None = None,
        num_threads: int | None = None,
        *,
        cols: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return B R, of an embedding Aᵀ, or the rows, or columns, of it: float32."""
        found = self.find(module)
        if found.is_embedding:
            return np.ascontiguousarray(found.a.window(cols, rows).T)
        return _multiplied(found, rows, cols)

    def is_embedding(self, module: str) -> bool:
        """Tell whether a module is an embedding by its name, which alone says it."""
        return self.find(module).is_embedding

    def shape(self, module: str) -> tuple[int, int]:
        """Return the (out_features, in_features) of the stored factors."""
        found = self.find(module)
        out, into = found.b.shape[0], found.a.shape[1]
        return (into, out) if found.is_embedding else (out, into)

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory."""
        return sum(m.core.nbytes for m in self.modules.values()) + super().held_bytes


def _is_embedding(module: str) -> bool:
    return module.rpartition(".")[2] in _EMBEDDINGS


def _multiplied(
    module: TinyLoraModule, rows: Range | None, cols: Range | None
) -> NDArray[np.float32]:
    """Return some columns of some rows of B R, summed in double in the order of R's rows."""
    b = module.b.window(rows, None).astype(np.float64)
    core = module.core[:, slice(*(cols or (None,)))].astype(np.float64)

    def product() -> NDArray[np.float32]:
        total = np.zeros((len(b), core.shape[1]))
        for j, row in enumerate(core):
            total += b[:, j : j + 1] * row
        return total.astype(np.float32)

    return ops.in_specified_environment(product)
