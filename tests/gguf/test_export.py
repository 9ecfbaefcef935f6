"""LoRA files for llama.cpp: the delta that a merge would add, by llama.cpp's own formula."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    CheckpointError,
    FormatError,
    MismatchError,
    NotFiniteError,
    OutputError,
)
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.gguf import GgufFile
from tests.conftest import snapshot, write_safetensors
from tests.gguf.encode import ARRAY, UINT32, llama_pairs, pair
from tests.gguf.test_merge import (
    BLOCK,
    HEADS,
    KEY_HEADS,
    MODULES,
    adapter_of,
    arrays_of,
    factors,
    stored_name,
    write,
)

pytest.importorskip("gguf")
F = np.float32
NO_WARNING = pytest.mark.filterwarnings("ignore::nola_edge.errors.NolaEdgeWarning")


def read(path):
    """Return a LoRA file's metadata and tensors."""
    tensors = {}
    with GgufFile.open(path) as file:
        for name, info in file.tensors.items():
            data = bytearray(info.nbytes)
            file.read_into(memoryview(data), info.start)
            dtype = {"F32": np.float32, "F16": np.float16}[info.dtype]
            tensors[name] = np.frombuffer(data, dtype).reshape(info.shape)
        return file.metadata, tensors


def delta(metadata, tensors, name):
    """Return what llama.cpp adds: alpha / r, where alpha 0 stands for r."""
    a, b = (tensors[f"{name}.lora_{x}"].astype(float) for x in "ab")
    alpha = metadata["adapter.lora.alpha"]
    return b @ a * (alpha / len(a) if alpha else 1)


def base_file(tmp_path):
    return write(tmp_path / "base.gguf", arrays_of("F16"))


def base_folder(tmp_path, **changes):
    folder = tmp_path / "folder"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{name}.weight": np.zeros(shape, F) for name, shape in MODULES.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_one_adapter_is_exact(rslora, tmp_path):
    adapter = adapter_of(use_rslora=rslora)
    export_gguf_lora(adapter, base_file(tmp_path), tmp_path / "lora.gguf")
    metadata, tensors = read(tmp_path / "lora.gguf")
    assert metadata["general.type"] == "adapter"
    assert metadata["adapter.type"] == "lora"
    assert metadata["general.architecture"] == "llama"
    assert F(metadata["adapter.lora.alpha"]) / F(adapter.config.r) == F(adapter.scaling)
    assert len(tensors) == 2 * len(MODULES)
    for module in MODULES:
        a, b = factors(adapter, module)
        assert np.array_equal(tensors[stored_name(module) + ".lora_a"], a)
        assert np.array_equal(tensors[stored_name(module) + ".lora_b"], b)


def test_a_folder_and_a_file_give_the_same_lora(tmp_path):
    adapter = adapter_of()
    for name, base in (("a", base_file(tmp_path)), ("b", base_folder(tmp_path))):
        export_gguf_lora(adapter, base, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_several_adapters_of_different_ranks_and_reach(tmp_path):
    q = BLOCK.format(0) + "self_attn.q_proj"
    some = trained_adapter({q: MODULES[q]}, r=6, num_basis=20, seed=8)
    parts = [(adapter_of(), 0.5), (adapter_of(r=2, seed=6, use_rslora=True), -1.5), (some, 2.0)]
    export_gguf_lora(parts, base_file(tmp_path), tmp_path / "lora.gguf")
    metadata, tensors = read(tmp_path / "lora.gguf")
    for module in MODULES:
        wanted = 0
        for adapter, weight in parts:
            if module in adapter.modules:
                a, b = factors(adapter, module)
                wanted = wanted + b.astype(float) @ a.astype(float) * (weight * adapter.scaling)
        found = delta(metadata, tensors, stored_name(module))
        assert np.allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@NO_WARNING
@pytest.mark.parametrize("weight", [0.0, 1e38, -2.0])
def test_scalings_that_alpha_cannot_say(weight, tmp_path):
    adapter = adapter_of(r=16)
    export_gguf_lora([(adapter, weight)], base_file(tmp_path), tmp_path / "lora.gguf")
    metadata, tensors = read(tmp_path / "lora.gguf")
    for module in MODULES:
        a, b = factors(adapter, module)
        wanted = b.astype(float) @ a.astype(float) * (weight * adapter.scaling)
        found = delta(metadata, tensors, stored_name(module))
        assert np.allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@NO_WARNING
@pytest.mark.parametrize("weight", [1e-46, 1e-60, -1e-47, 1e-41, -1e-300])
def test_a_scaling_that_vanishes_is_not_taken_for_one(weight, tmp_path):
    """An alpha of 0 stands for a factor of 1 in llama.cpp."""
    adapter = adapter_of(r=16)
    export_gguf_lora([(adapter, weight)], base_file(tmp_path), tmp_path / "lora.gguf")
    metadata, tensors = read(tmp_path / "lora.gguf")
    for module in MODULES:
        assert np.abs(delta(metadata, tensors, stored_name(module))).max() < 1e-37


def test_f16_is_rounded_once(tmp_path):
    adapter = adapter_of()
    export_gguf_lora(adapter, base_file(tmp_path), tmp_path / "lora.gguf", dtype="F16")
    _, tensors = read(tmp_path / "lora.gguf")
    for module in MODULES:
        a, _ = factors(adapter, module)
        assert tensors[stored_name(module) + ".lora_a"].dtype == np.float16
        assert np.array_equal(tensors[stored_name(module) + ".lora_a"], a.astype(np.float16))


def test_any_quantisation_of_the_base_will_do(tmp_path):
    module = BLOCK.format(0) + "mlp.down_proj"
    adapter = trained_adapter({module: (8, 256)}, r=4, num_basis=20, seed=5)
    arrays = {stored_name(module): ("Q4_K", (8, 256), bytes(8 * 144))}
    export_gguf_lora(adapter, write(tmp_path / "base.gguf", arrays), tmp_path / "lora.gguf")
    _, tensors = read(tmp_path / "lora.gguf")
    assert tensors["blk.0.ffn_down.weight.lora_b"].shape == (8, 4)


def refused(tmp_path, message, error, base, adapter=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        export_gguf_lora(adapter or adapter_of(), base, tmp_path / "lora.gguf", **options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_refusals(tmp_path, monkeypatch):
    base = base_file(tmp_path)
    refused(tmp_path, "dtype: is 'BF16'", ArgumentError, base, dtype="BF16")
    refused(tmp_path, "does not exist", CheckpointError, tmp_path / "missing")
    whole = adapter_of()
    whole.whole_tensors["lm_head.weight"] = np.ones((2, 2), F)
    refused(tmp_path, "cannot go into GGUF", AdapterError, base, whole)
    other = trained_adapter({BLOCK.format(0) + "self_attn.v_proj": (16, 128)}, r=4, seed=5)
    refused(tmp_path, "shapes_fingerprint", MismatchError, base, other)
    large = adapter_of()
    large = large.replace({m: (c.alpha * 1e6, c.beta) for m, c in large.modules.items()})
    refused(tmp_path, "not finite in F16", NotFiniteError, base, large, dtype="F16")
    (tmp_path / "broken.gguf").write_bytes(base.read_bytes()[:300])
    refused(tmp_path, "broken.gguf", FormatError, tmp_path / "broken.gguf")
    (tmp_path / "lora.gguf").write_bytes(b"")
    refused(tmp_path, "exists already", OutputError, base)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(tmp_path, "pip install gguf", ArgumentError, base)


def test_refusals_of_folders(tmp_path):
    folder = base_folder(tmp_path, model_type="mamba")
    refused(tmp_path, "model_type: 'mamba' is not supported", MismatchError, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, "does not state its number of attention heads", MismatchError, folder)
    (folder / "config.json").unlink()
    refused(tmp_path, "config.json", CheckpointError, folder)
    refused(tmp_path, "is not a folder", CheckpointError, folder / "model.safetensors")


def test_heads_for_each_block(tmp_path):
    pairs = [
        *llama_pairs()[:1],
        pair("llama.attention.head_count", ARRAY, (UINT32, [HEADS, HEADS])),
        pair("llama.attention.head_count_kv", ARRAY, (UINT32, [KEY_HEADS, KEY_HEADS])),
    ]
    base = write(tmp_path / "lists.gguf", arrays_of("F16"), pairs)
    export_gguf_lora(adapter_of(), base, tmp_path / "one")
    export_gguf_lora(adapter_of(), base_file(tmp_path), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    short = [*llama_pairs()[:1], pair("llama.attention.head_count", ARRAY, (UINT32, [HEADS]))]
    base = write(tmp_path / "short.gguf", arrays_of("F16"), short)
    refused(tmp_path, "does not state its number of attention heads", MismatchError, base)


def test_two_names_of_one_tensor_in_a_folder_are_refused(tmp_path):
    folder = base_folder(tmp_path)
    tensors = {
        "model.layers.0.self_attn.v_proj.weight": np.zeros((32, 64), F),
        "model.language_model.layers.0.self_attn.v_proj.weight": np.zeros((32, 64), F),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    names = {name.removesuffix(".weight"): (32, 64) for name in tensors}
    adapter = trained_adapter(names, r=4, num_basis=20, seed=8)
    refused(tmp_path, "is the tensor blk.0.attn_v.weight", AdapterError, folder, adapter)
