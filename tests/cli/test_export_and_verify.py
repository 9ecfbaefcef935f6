"""A NOLA adapter, exported as LoRA and merged, against itself: the same, or off by so much."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest

from nola_edge.dtypes import numpy_dtype
from tests.adapters.test_tinylora import tinylora_files
from tests.adapters.test_vera import vera_files
from tests.cli.in_process import call, refused
from tests.conftest import (
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    write_safetensors,
    write_sharded,
)
from tests.gguf.test_export import base_folder
from tests.gguf.test_merge import adapter_of, arrays_of, write
from tests.lora_folders import factors, write_lora

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


SAYS_NO_SIZES = {"NOLA": lambda folder: tiny_adapter().save(folder),
                 "VeRA": lambda folder: vera_files(MODULES).write(folder)}  # fmt: skip
SAYS_SIZES = {
    "LoRA": lambda folder: write_lora(
        folder, factors(ranks={"layers.0.v": 2}), rank_pattern={"layers.0.v": 2}
    ),
    "rsLoRA": lambda folder: write_lora(folder, use_rslora=True),
    "TinyLoRA": lambda folder: tinylora_files(MODULES).write(folder),
}


@pytest.mark.parametrize("method", [*SAYS_SIZES, *SAYS_NO_SIZES])
def test_the_chain_as_it_is_typed(method, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("base")
    write_sharded(tmp_path / "base", load_all(paths[0]), 2)
    {**SAYS_SIZES, **SAYS_NO_SIZES}[method](tmp_path / "A")
    given = [] if method in SAYS_SIZES else ["--base", "base"]
    exported = call("export", "lora", "A", *given, "-o", "L")
    assert exported.returncode == 0, exported
    assert call("merge", "base", "L", "-o", "M").returncode == 0
    done = call("verify", "M", "--base", "base", "--adapter", "A")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("identical: 8 tensors (3 merged)")


@pytest.mark.parametrize("recorded", [None, "some/model", "/my models/base"])
@pytest.mark.parametrize("method", SAYS_NO_SIZES)
def test_what_says_no_sizes_is_told_what_to_add(method, recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SAYS_NO_SIZES[method](tmp_path / "A")
    config = tmp_path / "A" / "adapter_config.json"
    fields = {**json.loads(config.read_text()), "base_model_name_or_path": recorded}
    config.write_text(json.dumps(fields))
    before = snapshot(tmp_path)
    line = refused("export", "lora", "A", "-o", "L")
    base = shlex.quote(recorded) if recorded else "BASE"
    assert f"how large its modules are: add --base {base} (" in line
    assert snapshot(tmp_path) == before
