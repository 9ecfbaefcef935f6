"""What is not merged into GGUF is refused in one line, and nothing has changed then."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    FormatError,
    MismatchError,
    NotFiniteError,
    OutputError,
)
from nola_edge.gguf import merge_gguf
from tests.conftest import snapshot
from tests.gguf.encode import STRING, UINT32, llama_pairs, pair
from tests.gguf.test_merge import BLOCK, F, adapter_of, arrays_of, stored_name, write


def refused(tmp_path, message, error=MismatchError, adapter=None, base=None, **options):
    base = write(tmp_path / "base.gguf", arrays_of()) if base is None else base
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        merge_gguf(base, adapter or adapter_of(), tmp_path / "out.gguf", **options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_an_unknown_architecture_is_refused(tmp_path):
    for value in ("mamba", "", "LLAMA", "llama\n"):
        pairs = [pair("general.architecture", STRING, value)]
        base = write(tmp_path / "base.gguf", arrays_of(), pairs)
        refused(tmp_path, "is not supported", base=base)
    base = write(tmp_path / "base.gguf", arrays_of(), [])
    refused(tmp_path, "general.architecture: None is not supported", base=base)
    pairs = [pair("general.architecture", UINT32, 1)]
    refused(tmp_path, "not supported", base=write(tmp_path / "base.gguf", arrays_of(), pairs))


def test_what_is_no_whole_model_is_refused(tmp_path):
    pairs = [*llama_pairs(), pair("split.count", UINT32, 3)]
    refused(tmp_path, "llama-gguf-split", base=write(tmp_path / "base.gguf", arrays_of(), pairs))
    pairs = [*llama_pairs(), pair("general.type", STRING, "adapter")]
    refused(tmp_path, "not a model", base=write(tmp_path / "base.gguf", arrays_of(), pairs))


def test_modules_of_another_architecture_are_refused(tmp_path):
    for module in (
        "transformer.h.0.attn.c_attn",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.00.self_attn.v_proj",
        "vision_tower.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.experts.3.up_proj",
        "model.layers.99999999999999.self_attn.v_proj",
    ):
        adapter = trained_adapter({module: (64, 64)}, r=4, num_basis=20, seed=5)
        refused(tmp_path, "is not a module of the architecture llama", adapter=adapter)


def test_missing_tensors_and_other_shapes_are_refused(tmp_path):
    adapter = trained_adapter({BLOCK.format(2) + "self_attn.v_proj": (32, 64)}, r=4, seed=5)
    refused(tmp_path, "blk.2.attn_v.weight: is missing", adapter=adapter)
    adapter = trained_adapter({BLOCK.format(1) + "self_attn.v_proj": (16, 128)}, r=4, seed=5)
    refused(tmp_path, "shapes_fingerprint", adapter=adapter)
    adapter = trained_adapter({"lm_head": (50, 64)}, r=4, seed=5)
    refused(tmp_path, "output.weight: is missing", adapter=adapter)
    arrays = {**arrays_of(), "blk.0.attn_v.weight": np.ones((2, 4, 8), F)}
    refused(tmp_path, "a matrix is needed", base=write(tmp_path / "base.gguf", arrays))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (0, "does not state its number of attention heads"),
        (3, "cannot be divided into 3 heads"),
        (64, "cannot be divided into 64 heads"),
        (2**30, "not a number of heads"),
    ],
)
def test_heads_that_lie_are_refused(heads, message, tmp_path):
    error = ArgumentError if heads >= 2**20 else MismatchError
    base = write(tmp_path / "base.gguf", arrays_of(), llama_pairs(heads, 0))
    refused(tmp_path, message, error, base=base)


def test_types_that_cannot_be_written_are_refused_with_advice(tmp_path):
    pytest.importorskip("gguf")
    module = BLOCK.format(0) + "mlp.down_proj"
    adapter = trained_adapter({module: (8, 256)}, r=4, num_basis=20, seed=5)
    arrays = {**arrays_of(), stored_name(module): ("Q4_K", (8, 256), bytes(8 * 144))}
    base = write(tmp_path / "base.gguf", arrays)
    refused(tmp_path, "export gguf-lora", adapter=adapter, base=base)
    refused(tmp_path, "--outtype f16, bf16 or q8_0", adapter=adapter, base=base)
    for outtype in ("Q4_K", "I8", "nonsense\n", ""):
        refused(tmp_path, "must be one of", ArgumentError, adapter, base, outtype=outtype)


def test_rows_that_are_no_whole_blocks_of_the_new_type_are_refused(tmp_path):
    pytest.importorskip("gguf")
    module = BLOCK.format(0) + "mlp.down_proj"
    adapter = trained_adapter({module: (8, 40)}, r=4, num_basis=20, seed=5)
    base = write(tmp_path / "base.gguf", {stored_name(module): np.ones((8, 40), F)})
    refused(tmp_path, "not whole blocks of Q8_0", adapter=adapter, base=base, outtype="Q8_0")


def k_quants(path):
    """Write a base with a tensor of a type that is only read, and make an adapter for it."""
    module = BLOCK.format(0) + "mlp.down_proj"
    base = write(path, {stored_name(module): ("Q4_K", (8, 256), bytes(8 * 144))})
    return base, trained_adapter({module: (8, 256)}, r=4, num_basis=20, seed=5)


def test_without_the_gguf_package_other_quantised_tensors_are_refused(tmp_path, monkeypatch):
    import sys

    base, adapter = k_quants(tmp_path / "base.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(tmp_path, "pip install gguf", ArgumentError, adapter, base, outtype="F16")
    arrays = {**arrays_of(), "blk.0.attn_v.weight": ("Q8_0", (32, 64), bytes(32 * 68))}
    merge_gguf(write(tmp_path / "plain.gguf", arrays), adapter_of(), tmp_path / "o.gguf")


def test_values_that_are_not_finite_are_refused(tmp_path):
    for kind, value in (("F32", np.inf), ("F16", np.nan), ("F16", 65504.0)):
        arrays = arrays_of(kind)
        arrays["blk.1.attn_q.weight"][3, 5] = value
        adapter = adapter_of()
        if value == 65504.0:
            held = adapter.modules[BLOCK.format(1) + "self_attn.q_proj"]
            adapter = adapter.replace(
                {BLOCK.format(1) + "self_attn.q_proj": (held.alpha * 1e6, held.beta * 1e6)}
            )
        base = write(tmp_path / "base.gguf", arrays)
        refused(tmp_path, "infinite or NaN", NotFiniteError, adapter, base)
    pytest.importorskip("gguf")
    arrays = arrays_of("F32")
    arrays["blk.1.attn_q.weight"][3, 5] = 1e9
    base = write(tmp_path / "base.gguf", arrays)
    for outtype in ("F16", "Q8_0"):
        refused(tmp_path, f"too large for {outtype}", NotFiniteError, base=base, outtype=outtype)


def test_whole_tensors_are_refused(tmp_path):
    adapter = adapter_of()
    adapter.whole_tensors["lm_head.weight"] = np.ones((2, 2), F)
    refused(tmp_path, "merge into the Hugging Face checkpoint", AdapterError, adapter)


def test_outputs_are_kept_and_inputs_too(tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of())
    (tmp_path / "out.gguf").write_text("mine")
    refused(tmp_path, "exists already", OutputError, base=base)
    refused(tmp_path, "is not a GGUF model, so --force", OutputError, base=base, force=True)
    write(tmp_path / "out.gguf", dict(list(arrays_of().items())[:-1]))
    message = f"lacks tensor {list(arrays_of())[-1]!r}, which this output has, so --force"
    refused(tmp_path, message, OutputError, base=base, force=True)
    (tmp_path / "out.gguf").write_bytes(base.read_bytes())
    merge_gguf(base, adapter_of(), tmp_path / "out.gguf", force=True)
    assert (tmp_path / "out.gguf").read_bytes() != base.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        merge_gguf(base, adapter_of(), base, force=True)


def test_a_base_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + bytes(40))
    refused(tmp_path, "version: 0", FormatError, base=tmp_path / "base.gguf")


def test_two_modules_of_one_tensor_are_refused(tmp_path):
    names = ("model.layers.0.self_attn.v_proj", "layers.0.self_attn.v_proj")
    adapter = trained_adapter(dict.fromkeys(names, (32, 64)), r=4, seed=5)
    refused(tmp_path, "is the tensor blk.0.attn_v.weight", AdapterError, adapter)


def test_empty_matrices_are_refused(tmp_path):
    arrays = {**arrays_of(), "blk.0.attn_q.weight": np.empty((0, 64), F)}
    refused(tmp_path, "a matrix is needed", base=write(tmp_path / "base.gguf", arrays))


def test_a_type_that_an_older_gguf_package_lacks(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    base, adapter = k_quants(tmp_path / "base.gguf")
    monkeypatch.setattr(gguf, "GGMLQuantizationType", {})
    message = "installed gguf package cannot read"
    refused(tmp_path, message, MismatchError, adapter, base, outtype="F16")


def test_trained_biases_that_were_lost(tmp_path):
    """Only where the base's layers have biases."""
    adapter = adapter_of()
    adapter.config = dataclasses.replace(adapter.config, bias="nola_only")
    merge_gguf(write(tmp_path / "plain.gguf", arrays_of()), adapter, tmp_path / "merged.gguf")
    name = stored_name(next(iter(adapter.modules))).replace("weight", "bias")
    base = write(tmp_path / "base.gguf", {**arrays_of(), name: np.zeros(7, F)})
    message = f"1 of its layers', such as {name}"
    refused(tmp_path, message, AdapterError, adapter=adapter, base=base)
