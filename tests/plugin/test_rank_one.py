"""A method of another package holds what every method must; this is all that its author writes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.testing import AdapterContract, AdapterFiles


@pytest.mark.usefixtures("rank_one_installed")
class TestRankOne(AdapterContract):
    required_fields = ("strength",)
    bad_fields: ClassVar = {"strength": ["1", True, 1e31], "modules_to_save": ["head"]}

    def files(self, shapes, seed=0):
        rng = np.random.default_rng(seed)
        tensors = {}
        for module, (out, into) in shapes.items():
            tensors[f"{PREFIX}{module}.column"] = rng.standard_normal(out).astype(np.float32)
            tensors[f"{PREFIX}{module}.row"] = rng.standard_normal(into).astype(np.float16)
        return AdapterFiles({"peft_type": "RANK_ONE", "strength": 0.3}, tensors)

    def product(self, files, module, shape):
        column, row = (files.tensors[f"{PREFIX}{module}.{name}"] for name in ("column", "row"))
        return column[:, None], row.astype(np.float32)[None, :], files.config["strength"]
