"""A NOLA adapter, exported as LoRA and merged, against itself: the same, or off by so much."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from nola_edge.dtypes import numpy_dtype
from tests.cli.in_process import call
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.gguf.test_export import base_folder
from tests.gguf.test_merge import adapter_of, arrays_of, write

DTYPES = ["F32", "F16", "BF16"]


@pytest.fixture(params=DTYPES)
def paths(request, tiny, tmp_path):
    """A base of one dtype, and an adapter that does not record another."""
    kind = numpy_dtype(request.param)
    tensors = {name: values.astype(kind) for name, values in load_all(tiny[0]).items()}
    write_safetensors(tmp_path / "base.safetensors", tensors)
    tiny_adapter().save(tmp_path / "nola")
    return tmp_path / "base.safetensors", tmp_path / "nola"


def merged_by_way_of_lora(base, adapter, dtype, tmp_path):
    lora, merged = tmp_path / "lora", tmp_path / f"merged{base.suffix}"
    exported = call("export", "lora", adapter, "--base", base, "-o", lora, "--dtype", dtype)
    assert exported.returncode == 0, exported
    assert call("merge", base, lora, "-o", merged).returncode == 0
    assert call("verify", merged, base, lora).returncode == 0
    return merged


def test_factors_in_float32_are_the_adapter(paths, tmp_path):
    merged = merged_by_way_of_lora(*paths, "f32", tmp_path)
    done = call("verify", merged, *paths)
    assert done.returncode == 0
    assert done.stdout.startswith("identical: 8 tensors (3 merged)")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_rounded_factors_differ_by_so_many_ulps(paths, dtype, tmp_path):
    """All of the change is there, and --ulps accepts the rest from the largest on."""
    merged = merged_by_way_of_lora(*paths, dtype, tmp_path)
    before = snapshot(tmp_path)
    done = call("verify", merged, *paths)
    assert done.returncode == 1
    assert re.search(r"\nverdict: (right, but .*|the difference is rounding)\n", done.stdout)
    report = json.loads(call("verify", merged, *paths, "--json").stdout)
    assert {d["problem"] for d in report["differences"]} == {"values"}
    assert all(abs(d["factor"] - 1) < 0.01 for d in report["differences"])
    most = math.ceil(max(d["ulps"] for d in report["differences"]))
    assert call("verify", merged, *paths, "--ulps", most).returncode == 0
    assert call("verify", merged, *paths, "--ulps", most - 1).returncode == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_gguf_file(kind, tmp_path):
    """Its LoRA takes the same place: the folder says how large modules are."""
    base, adapter = write(tmp_path / "base.gguf", arrays_of(kind)), tmp_path / "nola"
    adapter_of().save(adapter)
    lora, merged = tmp_path / "lora", tmp_path / "merged.gguf"
    folder = base_folder(tmp_path)
    assert call("export", "lora", adapter, "--base", folder, "-o", lora).returncode == 0
    assert call("merge", base, lora, "-o", merged).returncode == 0
    done = call("verify", merged, base, adapter)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "identical")
    assert np.array_equal(*(np.fromfile(path, np.uint8) for path in (
        merged, merge(base, adapter, tmp_path / "direct.gguf"),
    )))  # fmt: skip


def merge(base, adapter, output):
    assert call("merge", base, adapter, "-o", output).returncode == 0
    return output
