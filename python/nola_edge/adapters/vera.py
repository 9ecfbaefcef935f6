"""VeRA: two random matrices that all modules share, and two trained vectors for each of them.

    W' = W + diag(lambda_b) B diag(lambda_d) A        (arXiv 2310.11454)

A module takes the first columns of A and the first rows of B. Both are in the file (PEFT's
``save_projection``): torch draws others on another device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_fields import BOOKKEEPING, Fields
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, kept_open, prefixed_names
from nola_edge.adapters.stored import StoredAdapter
from nola_edge.adapters.tensor_parts import check_owners
from nola_edge.errors import AdapterError
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.stored_matrix import StoredMatrix
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.ops import Range

_A, _B = "base_model.vera_A", "base_model.vera_B"
_LAMBDA_B, _LAMBDA_D = ".vera_lambda_b", ".vera_lambda_d"
_FROZEN = ".base_layer.weight"
#: Fields that say how training began; the projections are in the file, whatever drew them.
_TRAINING = frozenset({"d_initial", "init_weights", "projection_prng_key", "vera_dropout"})
_MISSING = (
    "is missing: the random matrices were not saved, and torch draws different ones on "
    "another device; load the adapter where it was trained and save it with save_projection=True"
)


@dataclass(frozen=True)
class VeraConfig:
    """The fields that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
    fan_in_fan_out : bool
    bias : str
        ``"none"``, ``"all"`` or ``"vera_only"``: whether bias tensors are in the file.
    modules_to_save : tuple of str
        Modules whose tensors are in the file whole.
    tensors : dict
        Module, or name of a whole tensor -> :class:`TensorPart`, where names do not say it.
    bookkeeping : dict
        Known fields without influence on the weights, kept as they are.
    """

    r: int
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    tensors: dict[str, TensorPart] = field(default_factory=dict)
    bookkeeping: dict[str, Any] = field(default_factory=dict)

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
        config = VeraConfig(
            r=fields.rank("r"),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            bias=fields.choice("bias", ("none", "all", "vera_only")),
            modules_to_save=fields.names("modules_to_save"),
            tensors=fields.parts("tensors"),
            bookkeeping=fields.those_of(BOOKKEEPING | _TRAINING),
        )
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


class VeraAdapter(StoredAdapter):
    """A VeRA whose random matrices stay in their file, and are read as they are merged.

    Attributes
    ----------
    config : VeraConfig
    modules : dict
        Module name -> :class:`VeraModule`, in the order of the file.
    whole_tensors : TensorMapping
        Tensor name -> array, for ``modules_to_save`` and biases.
    path : Path
        Where it was loaded from.
    """

    config: VeraConfig
    modules: dict[str, VeraModule]

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder
        self.config = VeraConfig.from_json(data, file=folder / CONFIG_NAME)
        with kept_open(folder) as file:
            self._read(file)

    def _read(self, file: SafetensorsFile) -> None:
        tensors = FactorFile(file, self.config)
        self._a, self._b = self._projections(file, tensors)
        self.modules, rest = {}, {}
        for name, local in prefixed_names(file, apart=(_A, _B)):
            module = local.removesuffix(_LAMBDA_B).removesuffix(_LAMBDA_D)
            if module in ("", local):
                rest[name] = local
            elif module not in self.modules:
                self.modules[module] = self._module(file, tensors, PREFIX + module)
        rest = {name: local for name, local in rest.items() if not self._is_frozen(local)}
        if not self.modules:
            raise AdapterError(f"has no vectors (no *{_LAMBDA_B})", file=file.path)
        self.whole_tensors = TensorMapping(tensors.whole_tensors(rest))
        check_owners(self.config.tensors, self.modules, self.whole_tensors, file.path)

    def _projections(
        self, file: SafetensorsFile, tensors: FactorFile
    ) -> tuple[StoredMatrix, StoredMatrix]:
        for name in (_A, _B):
            if name not in file.tensors:
                raise tensors.refusal(name, _MISSING)
        a, b = tensors.matrix(_A), tensors.matrix(_B)
        for name, rank in ((_A, a.shape[0]), (_B, b.shape[1])):
            if rank != self.config.r:
                raise tensors.refusal(
                    name, f"is of rank {rank}; {CONFIG_NAME} says r = {self.config.r}"
                )
        return a, b

    def _module(self, file: SafetensorsFile, tensors: FactorFile, stem: str) -> VeraModule:
        for ending, partner in ((_LAMBDA_B, _LAMBDA_D), (_LAMBDA_D, _LAMBDA_B)):
            if stem + ending not in file.tensors:
                raise tensors.refusal(
                    stem + partner, f"has no partner {ending[1:]}; the file is not complete"
                )
        info = file.tensors[stem + _LAMBDA_B]
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

    def _is_frozen(self, local: str) -> bool:
        """Tell whether it is the base's weight, which PEFT saves beside an adapted output layer."""
        return local.endswith(_FROZEN) and local.removesuffix(_FROZEN) in self.modules

    @property
    def method(self) -> str:
        """Return ``"VeRA"``."""
        return "VeRA"

    def rank(self, module: str) -> int:
        """Return r, the same for every module."""
        return len(self._module_of(module).lambda_d)

    def scaling_of(self, module: str) -> float:
        """Return 1: VeRA has no scaling."""
        self.find(module)
        return 1.0

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
        scales = self._module_of(module).lambda_d[slice(*(rows or (None,)))]
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
        return _scaled_rows(
            self._b.window(rows, cols), self._module_of(module).lambda_b[slice(*rows)]
        )

    def accepts(self, module: str, out_features: int, in_features: int) -> bool:
        """Tell whether a module may have this shape: as many outputs as lambda_b, inputs of A."""
        outputs = len(self._module_of(module).lambda_b)
        return out_features == outputs and in_features <= self._a.shape[1]

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory."""
        vectors = sum(m.lambda_b.nbytes + m.lambda_d.nbytes for m in self.modules.values())
        return vectors + super().held_bytes

    def _module_of(self, module: str) -> VeraModule:
        found: VeraModule = self.find(module)
        return found


def _scaled_rows(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return ops.in_specified_environment(lambda: values * scales[:, None])
