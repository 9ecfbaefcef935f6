"""VeRA: two random matrices that all modules share, and two trained vectors for each of them.

    W' = W + diag(lambda_b) B diag(lambda_d) A        (arXiv 2310.11454)

A module takes the first columns of A and the first rows of B. Both are in the file (PEFT's
``save_projection``): torch draws others on another device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_fields import Fields
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, kept_open, prefixed_names
from nola_edge.adapters.stored import StoredAdapter, StoredConfig
from nola_edge.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.stored_matrix import StoredMatrix
    from nola_edge.ops import Range

_A, _B = "base_model.vera_A", "base_model.vera_B"
_LAMBDA_B, _LAMBDA_D = ".vera_lambda_b", ".vera_lambda_d"
#: Fields that say how training began; the projections are in the file, whatever drew them.
_TRAINING = frozenset({"d_initial", "init_weights", "projection_prng_key", "vera_dropout"})
_MISSING = (
    "is missing: the random matrices were not saved, and torch draws different ones on "
    "another device; load the adapter where it was trained and save it with save_projection=True"
)


@dataclass(frozen=True)
class VeraConfig(StoredConfig):
    """The fields of a VeRA that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
    """

    r: int

    @staticmethod
    def from_json(data: dict[str, Any], *, file: Path) -> VeraConfig:
        """Check a parsed ``adapter_config.json``.

        Raises
        ------
        AdapterError
            Naming the file, the field and its value.
        """
        fields = Fields(data, file, {})
        fields.take("save_projection", True)  # the file itself says whether they are there
        config = VeraConfig(r=fields.rank("r"), **fields.common("vera_only", _TRAINING))
        fields.refuse_rest()
        return config


@dataclass(frozen=True, eq=False)
class VeraModule:
    """The trained numbers of one module, which are few and in memory.

    Attributes
    ----------
    lambda_b : (out_features,) float32
    lambda_d : (r,) float32
    """

    lambda_b: NDArray[np.float32]
    lambda_d: NDArray[np.float32]


class VeraAdapter(StoredAdapter[VeraModule]):
    """A VeRA whose random matrices stay in their file, and are read as they are merged.

    Attributes
    ----------
    config : VeraConfig
    """

    config: VeraConfig

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder
        self.config = VeraConfig.from_json(data, file=folder / CONFIG_NAME)
        with kept_open(folder) as file:
            self._read(FactorFile(file, self.config))

    def _read(self, tensors: FactorFile) -> None:
        self._a, self._b = self._projections(tensors)
        modules: dict[str, VeraModule] = {}
        rest: dict[str, str] = {}
        for name, local in prefixed_names(tensors.file, apart=(_A, _B)):
            module = local.removesuffix(_LAMBDA_B).removesuffix(_LAMBDA_D)
            if module in ("", local):
                rest[name] = local
            elif module not in modules:
                tensors.check_partners(name, PREFIX + module, (_LAMBDA_B, _LAMBDA_D))
                modules[module] = self._module(tensors, PREFIX + module)
        if not modules:
            raise AdapterError(f"has no vectors (no *{_LAMBDA_B})", file=tensors.file.path)
        self.modules = modules
        self.take_whole_tensors(tensors, rest)

    def _projections(self, tensors: FactorFile) -> tuple[StoredMatrix, StoredMatrix]:
        for name in (_A, _B):
            if name not in tensors.file.tensors:
                raise tensors.refusal(name, _MISSING)
        a, b = tensors.matrix(_A), tensors.matrix(_B)
        for name, rank in ((_A, a.shape[0]), (_B, b.shape[1])):
            if rank != self.config.r:
                raise tensors.refusal(
                    name,
                    f"is of rank {rank}; {CONFIG_NAME} says r = {self.config.r}: correct it there, "
                    "or take the file that was saved with it",
                )
        return a, b

    def _module(self, tensors: FactorFile, stem: str) -> VeraModule:
        info = tensors.file.tensors[stem + _LAMBDA_B]
        if len(info.shape) != 1 or not 1 <= info.size <= self._b.shape[0]:
            raise tensors.refusal(
                info.name,
                f"has shape {list(info.shape)}, must be at most the {self._b.shape[0]} rows of B",
            )
        vectors = (
            tensors.vector(stem + _LAMBDA_B, info.size),
            tensors.vector(stem + _LAMBDA_D, self.config.r),
        )
        return VeraModule(*(vector.array().astype(np.float32) for vector in vectors))

    @property
    def method(self) -> str:
        """Return ``"VeRA"``."""
        return "VeRA"

    def rank(self, module: str) -> int:
        """Return r, the same for every module."""
        return len(self.find(module).lambda_d)

    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: Range | None = None,
        num_threads: int | None = None,
        *,
        rows: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return diag(lambda_d) A, or the columns, or rows, (start, stop) of it: float32."""
        scales = self.find(module).lambda_d[slice(*(rows or (None,)))]
        return _scaled_rows(self._a.window(rows, cols or (0, in_features)), scales)

    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: Range | None = None,
        num_threads: int | None = None,
        *,
        cols: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return diag(lambda_b) B, or the rows, or columns, (start, stop) of it: float32."""
        rows = rows or (0, out_features)
        return _scaled_rows(self._b.window(rows, cols), self.find(module).lambda_b[slice(*rows)])

    def accepts(self, module: str, out_features: int, in_features: int) -> bool:
        """Tell whether a module may have this shape: as many outputs as lambda_b, inputs of A."""
        outputs = len(self.find(module).lambda_b)
        return out_features == outputs and in_features <= self._a.shape[1]

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory."""
        vectors = sum(m.lambda_b.nbytes + m.lambda_d.nbytes for m in self.modules.values())
        return vectors + super().held_bytes


def _scaled_rows(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return ops.in_specified_environment(lambda: values * scales[:, None])
