"""GGUF files hold what every format of weights must, whatever type their tensors have."""

from __future__ import annotations

import numpy as np
import pytest

from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.testing import BaseContract
from nola_edge.testing.reference import merge
from tests.gguf.encode import encode, llama_pairs
from tests.gguf.test_merge import HEADS, KEY_HEADS, MODULES, arrays_of, quantized, stored_name

gguf = pytest.importorskip("gguf")


class TestFloats(BaseContract):
    kind = "F32"
    #: Without queries and keys, whose rows stand in another order here.
    modules = {m: s for m, s in MODULES.items() if m.endswith(("v_proj", "down_proj"))}  # noqa: RUF012

    def write(self, path):
        path = path.with_suffix(".gguf")
        path.write_bytes(encode(llama_pairs(HEADS, KEY_HEADS), arrays_of(self.kind)))
        return path

    def spans(self, path):
        tensors = gguf.GGUFReader(path).tensors
        return {t.name: (path, int(t.data_offset), int(t.data_offset + t.n_bytes)) for t in tensors}

    def stored_name(self, module):
        return stored_name(module)

    def merge(self, base, adapter, output, **options):
        return merge_gguf(base, adapter, output, **options)

    def verify(self, merged, base, adapter):
        return verify_gguf(merged, base, adapter)

    def merged(self, stored, module, product):
        weight = np.frombuffer(stored, np.float32).reshape(self.modules[module])
        return merge(weight, *product).tobytes()


class TestQuantized(TestFloats):
    kind = "Q8_0"

    def merged(self, stored, module, product):
        rows = np.frombuffer(stored, np.uint8).reshape(self.modules[module][0], -1)
        kind = gguf.GGMLQuantizationType[self.kind]
        values = gguf.quants.dequantize(rows, kind)
        return quantized(merge(values, *product), self.kind)[2]
