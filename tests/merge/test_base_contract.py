"""Checkpoints of safetensors hold what every format of weights must."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np

from nola_edge.testing import BaseContract
from nola_edge.testing.files import base_tensors
from nola_edge.testing.reference import merge
from tests.conftest import write_safetensors, write_sharded


def spans_of(path):
    """Read a header as the format's documentation says."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = {n: entry["data_offsets"] for n, entry in header.items() if n != "__metadata__"}
    return {n: (path, 8 + size + start, 8 + size + stop) for n, (start, stop) in found.items()}


class TestOneFile(BaseContract):
    dtype = np.dtype(np.float32)

    def write(self, path):
        path = path.with_suffix(".safetensors")
        write_safetensors(path, base_tensors(self.modules, self.dtype))
        return path

    def spans(self, path):
        return spans_of(path)

    def stored_name(self, module):
        return f"{module}.weight"

    def merged(self, stored, module, product):
        weight = np.frombuffer(stored, self.dtype).reshape(self.modules[module])
        return merge(weight, *product).tobytes()


class TestFolderOfShards(TestOneFile):
    dtype = np.dtype(ml_dtypes.bfloat16)

    def write(self, path):
        write_sharded(path, base_tensors(self.modules, self.dtype), 3)
        (path / "config.json").write_text("{}")
        return path

    def spans(self, path):
        return {n: s for file in path.glob("*.safetensors") for n, s in spans_of(file).items()}
