"""Several adapters, transposed storage, prefixes, blocks of rows: what a merge can do."""

import dataclasses
import gc
import json
import os

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.merge import windows
from tests.conftest import (
    MODULES,
    load_all,
    tiny_adapter,
    write_safetensors,
)
from tests.merge.checks import factors, merged
from tests.reference import merge as reference

F = np.float32


def test_several_adapters_are_rounded_once(tiny, tmp_path):
    """Each B times fl32(weight * s): a scaling that is no power of two, so that it matters."""
    base, _ = tiny
    one = tiny_adapter(r=3)
    one = Adapter(dataclasses.replace(one.config, lora_alpha=5.0), one.modules)
    two = tiny_adapter(seed=12, basis="uniform", r=3)
    got = merged(base, [(one, 0.3), (two, -0.7)], tmp_path)
    for module, shape in MODULES.items():
        (a1, b1), (a2, b2) = factors(one, module, shape), factors(two, module, shape)
        b = np.concatenate([b1 * F(0.3 * one.scaling), b2 * F(-0.7 * two.scaling)], axis=1)
        weight = load_all(base)[f"{module}.weight"]
        expected = reference.merge(weight, b, np.concatenate([a1, a2]), 1.0)
        assert got[f"{module}.weight"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("block_bytes", "strip_bytes"), [(1, 1 << 20), (700, 1), (700, 200)])
def test_windows_do_not_show(tiny, tmp_path, monkeypatch, block_bytes, strip_bytes, transposed):
    """Each window expands its own part of the factors: the bits are those of one piece."""
    base, _ = tiny
    tensors = load_all(base)
    if transposed:
        for module in MODULES:
            tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    write_safetensors(tmp_path / "b.safetensors", tensors)
    options = {"fan_in_fan_out": transposed, "r": 3, "num_basis": 37}
    terms = [(tiny_adapter(**options), 0.5), (tiny_adapter(**options, seed=5), 2.0)]
    outputs = [tmp_path / "whole.safetensors", tmp_path / "blocks.safetensors"]
    ne.merge_checkpoint(tmp_path / "b.safetensors", terms, outputs[0])
    monkeypatch.setattr(windows, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(windows, "_STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(windows, "_ALIGNMENT", 3)
    ne.merge_checkpoint(tmp_path / "b.safetensors", terms, outputs[1], num_threads=3)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert ne.verify_checkpoint(outputs[0], tmp_path / "b.safetensors", terms).identical
    assert not ne.verify_checkpoint(tmp_path / "b.safetensors", tmp_path / "b.safetensors", terms)
    with ne.open_merged(tmp_path / "b.safetensors", terms) as lazy:
        whole = load_all(outputs[0])
        assert all(lazy[name].tobytes() == whole[name].tobytes() for name in whole)


def test_a_weight_of_one_adapter_alone_keeps_its_bits(tiny, tmp_path):
    """An adapter for other modules does not change how this one is merged."""
    base, adapter = tiny
    other = Adapter(
        tiny_adapter(seed=5).config, {"layers.1.q": tiny_adapter(seed=5).modules["layers.1.q"]}
    )
    alone = merged(base, adapter, tmp_path)
    ne.merge_checkpoint(base, [adapter, other], tmp_path / "both")
    both = load_all(tmp_path / "both")
    name = "layers.0.q.weight"
    assert both[name].tobytes() == alone[name].tobytes()
    assert both["layers.1.q.weight"].tobytes() != alone["layers.1.q.weight"].tobytes()


def test_transposed_storage(tiny, tmp_path):
    base, _ = tiny
    tensors = load_all(base)
    for module in MODULES:
        tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    write_safetensors(tmp_path / "t.safetensors", tensors)
    straight = merged(base, tiny_adapter(), tmp_path)
    adapter = tiny_adapter(fan_in_fan_out=True)
    ne.merge_checkpoint(tmp_path / "t.safetensors", adapter, tmp_path / "t2.safetensors")
    transposed = load_all(tmp_path / "t2.safetensors")
    for module in MODULES:
        name = f"{module}.weight"
        assert np.array_equal(transposed[name].T, straight[name])


@pytest.mark.parametrize(("base_prefix", "adapter_prefix"), [("model.", ""), ("", "bert.")])
def test_names_that_differ_by_one_prefix(tiny, tmp_path, base_prefix, adapter_prefix):
    """The streams stay those of the adapter's own names."""
    base, _ = tiny
    tensors = {base_prefix + name: values for name, values in load_all(base).items()}
    write_safetensors(tmp_path / "b.safetensors", tensors)
    adapter = tiny_adapter()
    renamed = Adapter(adapter.config, {adapter_prefix + m: c for m, c in adapter.modules.items()})
    ne.merge_checkpoint(tmp_path / "b.safetensors", renamed, tmp_path / "o.safetensors")
    got = load_all(tmp_path / "o.safetensors")
    for module, shape in MODULES.items():
        a, b = factors(renamed, adapter_prefix + module, shape)
        weight = tensors[f"{base_prefix}{module}.weight"]
        expected = reference.merge(weight, b, a, renamed.scaling)
        assert got[f"{base_prefix}{module}.weight"].tobytes() == expected.tobytes()


def test_weights_in_a_mapping_or_a_pair(tiny, tmp_path):
    base, adapter = tiny
    expected = merged(base, [(adapter, 0.5)], tmp_path)["layers.0.q.weight"].tobytes()
    with ne.open_merged(base, {adapter: 0.5}) as tensors:
        assert tensors["layers.0.q.weight"].tobytes() == expected


def test_a_rank_above_the_sizes_merges(tiny, tmp_path):
    merged(tiny[0], tiny_adapter(r=50), tmp_path)


def test_asking_for_a_name_merges_nothing(tiny, monkeypatch):
    with ne.open_merged(*tiny) as tensors:
        monkeypatch.setattr(type(tensors), "__getitem__", None)
        assert "layers.0.q.weight" in tensors
        assert "absent" not in tensors


def test_forgotten_mappings_close_their_files(tiny):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        ne.open_merged(*tiny)["norm.weight"]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_report_is_true_where_all_agrees(tiny, tmp_path):
    ne.merge_checkpoint(*tiny, tmp_path / "out")
    assert ne.verify_checkpoint(tmp_path / "out", *tiny)
    assert not ne.verify_checkpoint(tiny[0], *tiny)


def test_force_replaces_and_cleans_up(tiny, tmp_path):
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "out")
    ne.merge_checkpoint(base, tiny_adapter(seed=3), tmp_path / "out", force=True)
    assert ne.verify_checkpoint(tmp_path / "out", base, tiny_adapter(seed=3)).identical
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter", "out"}


def test_memory_stays_flat(tmp_path):
    """A base of 200 MB is merged in far less; measured in a process of its own."""
    import subprocess
    import sys

    from nola_edge.demo.synthetic import DecoderShape, write_checkpoint

    shape = DecoderShape(layers=2, hidden=2048, intermediate=8192, vocabulary=8000)
    assert write_checkpoint(tmp_path / "base", shape) > 250e6
    trained_adapter(shape.linears()).save(tmp_path / "adapter")
    command = [sys.executable, "-m", "nola_edge.demo.comparison", "ours", "base", "adapter", "out"]
    done = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert json.loads(done.stdout)["peak_bytes"] < 100e6


def test_a_very_long_output_name(tiny, tmp_path):
    ne.merge_checkpoint(*tiny, tmp_path / ("o" * 255))
    assert (tmp_path / ("o" * 255)).is_dir()
