"""A method that nola-edge does not know, in one file, as another package would bring it.

W' = W + strength column row^T        column: (out,), row: (in,)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_fields import Fields
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, kept_open, prefixed_names
from nola_edge.adapters.stored import StoredAdapter, StoredConfig
from nola_edge.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.files.tensors import StoredTensor


@dataclass(frozen=True)
class RankOneConfig(StoredConfig):
    strength: float

    @staticmethod
    def from_json(data: dict[str, Any], file: Path) -> RankOneConfig:
        fields = Fields(data, file, {})
        config = RankOneConfig(strength=fields.alpha("strength"), **fields.common("rank_one_only"))
        fields.refuse_rest()
        return config


class RankOneAdapter(StoredAdapter["tuple[StoredTensor, StoredTensor]"]):
    config: RankOneConfig

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder
        self.config = RankOneConfig.from_json(data, folder / CONFIG_NAME)
        with kept_open(folder) as file:
            self._read(FactorFile(file, self.config))

    def _read(self, tensors: FactorFile) -> None:
        modules, rest = {}, {}
        for name, local in prefixed_names(tensors.file):
            module = local.removesuffix(".column").removesuffix(".row")
            if module in ("", local):
                rest[name] = local
            elif module not in modules:
                tensors.check_partners(name, PREFIX + module, (".column", ".row"))
                modules[module] = self._module(tensors, PREFIX + module)
        if not modules:
            raise AdapterError("has no vectors (no *.column)", file=tensors.file.path)
        self.modules = modules
        self.take_whole_tensors(tensors, rest)

    def _module(self, tensors: FactorFile, stem: str) -> tuple[StoredTensor, StoredTensor]:
        names = (stem + ".column", stem + ".row")
        lengths = [max(1, tensors.file.tensors[name].size) for name in names]
        return tensors.vector(names[0], lengths[0]), tensors.vector(names[1], lengths[1])

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
