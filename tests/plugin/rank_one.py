"""A method that nola-edge does not know, in one file, as another package would bring it.

W' = W + strength column row^T        column: (out,), row: (in,)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_fields import BOOKKEEPING, Fields
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, kept_open, prefixed_names
from nola_edge.adapters.stored import StoredAdapter
from nola_edge.adapters.tensor_parts import check_owners
from nola_edge.errors import AdapterError
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.tensors import StoredTensor


@dataclass(frozen=True)
class RankOneConfig:
    strength: float
    fan_in_fan_out: bool
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    tensors: dict[str, TensorPart] = field(default_factory=dict)
    bookkeeping: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(data: dict[str, Any], file: Path) -> RankOneConfig:
        fields = Fields(data, file, {})
        config = RankOneConfig(
            strength=fields.alpha("strength"),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            modules_to_save=fields.names("modules_to_save"),
            tensors=fields.parts("tensors"),
            bookkeeping=fields.those_of(BOOKKEEPING),
        )
        fields.refuse_rest()
        return config


class RankOneAdapter(StoredAdapter):
    config: RankOneConfig
    modules: dict[str, tuple[StoredTensor, StoredTensor]]

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder
        self.config = RankOneConfig.from_json(data, folder / CONFIG_NAME)
        with kept_open(folder) as file:
            self._read(FactorFile(file, self.config))

    def _read(self, tensors: FactorFile) -> None:
        self.modules, rest = {}, {}
        for name, local in prefixed_names(tensors.file):
            module = local.removesuffix(".column").removesuffix(".row")
            if module in ("", local):
                rest[name] = local
            elif module not in self.modules:
                self.modules[module] = self._module(tensors, PREFIX + module)
        if not self.modules:
            raise AdapterError("has no vectors (no *.column)", file=tensors.file.path)
        self.whole_tensors = TensorMapping(tensors.whole_tensors(rest))
        check_owners(self.config.tensors, self.modules, self.whole_tensors, tensors.file.path)

    def _module(self, tensors: FactorFile, stem: str) -> tuple[StoredTensor, StoredTensor]:
        one, other = names = (stem + ".column", stem + ".row")
        for name, partner in (names, names[::-1]):
            if name not in tensors.file.tensors:
                raise tensors.refusal(partner, f"has no partner {name}; the file is not complete")
        lengths = [max(1, tensors.file.tensors[name].size) for name in names]
        return tensors.vector(one, lengths[0]), tensors.vector(other, lengths[1])

    def rank(self, module: str) -> int:
        self.find(module)
        return 1

    def scaling_of(self, module: str) -> float:
        self.find(module)
        return self.config.strength

    def shape(self, module: str) -> tuple[int, int]:
        column, row = self.find(module)
        return column.size, row.size

    def factor_a(self, module, in_features, cols=None, num_threads=None, *, rows=None):
        row = self.find(module)[1].read(*(cols or (0, in_features)))
        return row.astype(np.float32)[None, :][slice(*(rows or (None,)))]

    def factor_b(self, module, out_features, rows=None, num_threads=None, *, cols=None):
        column = self.find(module)[0].read(*(rows or (0, out_features)))
        return column.astype(np.float32)[:, None][:, slice(*(cols or (None,)))]
