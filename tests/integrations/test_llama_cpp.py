"""GGUF with its own client, llama.cpp, where ``llama-cpp-python`` is installed.

``pip install llama-cpp-python`` compiles llama.cpp, a quarter of an hour on two cores; so this is
no part of the usual round, and left out without it.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

import nola_edge.torch as nt
from nola_edge.demo.kept import keep
from nola_edge.demo.scoring import Shipped
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import MismatchError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf
from nola_edge.gguf.quantization import numbers_of
from nola_edge.merge.open import open_merged
from tests.integrations.gguf_models import (
    CONFIGS,
    gguf_tensors,
    linear_shapes,
    make_model,
    write_gguf,
)
from tests.integrations.lora_family import FAMILIES, gpt2, llama, train

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("default")
TOKENS = list(range(3, 40))


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture
def prepared(kind, tmp_path):
    """A model, its GGUF file, and an adapter for all its linear layers."""
    model = make_model(kind)
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, kind), kind, model.config)
    adapter = trained_adapter(
        linear_shapes(model), r=4, num_basis=16, seed=5, fan_in_fan_out=kind == "gpt2"
    )
    return model, tmp_path / "base.gguf", adapter


def logits(path, lora=None):
    model = llama_cpp.Llama(
        str(path),
        lora_path=None if lora is None else str(lora),
        logits_all=True,
        n_ctx=64,
        verbose=False,
    )
    model.eval(TOKENS)
    found = np.array(model.scores[: len(TOKENS)])
    model.close()
    return found


def torch_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()


def ggml_quantized(source, target, name):
    """Let llama.cpp quantise a file."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.pure = True
    done = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(options)
    )
    assert done == 0


def test_a_merged_file_and_a_lora_give_the_logits_of_the_merged_model(prepared, tmp_path):
    model, base, adapter = prepared
    before = torch_logits(model)
    assert np.abs(logits(base) - before).max() < 1e-3  # the file is this model
    merge_gguf(base, adapter, tmp_path / "merged.gguf")
    export_gguf_lora(adapter, base, tmp_path / "lora.gguf")
    nt.merge_(model, adapter)
    expected = torch_logits(model)
    assert np.abs(expected - before).max() > 0.02
    assert np.abs(logits(tmp_path / "merged.gguf") - expected).max() < 1e-3
    assert np.abs(logits(base, tmp_path / "lora.gguf") - expected).max() < 1e-3


@pytest.mark.parametrize("kind", ["llama"])
def test_several_adapters_in_one_lora(prepared, tmp_path):
    model, base, adapter = prepared
    some = {name: shape for name, shape in linear_shapes(model).items() if "q_proj" in name}
    other = trained_adapter(some, r=6, num_basis=16, seed=6, use_rslora=True)
    parts = [(adapter, 0.75), (other, -0.5)]
    export_gguf_lora(parts, base, tmp_path / "lora.gguf", dtype="F16")
    nt.merge_(model, parts)
    assert np.abs(logits(base, tmp_path / "lora.gguf") - torch_logits(model)).max() < 5e-3


@pytest.mark.parametrize("kind", ["llama"])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_rows_are_ggmls_own(name, prepared, tmp_path):
    _, base, _ = prepared
    ggml_quantized(base, tmp_path / "quantised.gguf", name)
    checked = 0
    with GgufFile.open(base) as plain, GgufFile.open(tmp_path / "quantised.gguf") as theirs:
        for tensor, info in theirs.tensors.items():
            if info.dtype != name:
                continue
            values = np.empty(info.shape, np.float32)
            plain.read_into(values.reshape(-1).view(np.uint8).data, plain.tensors[tensor].start)
            data = bytearray(info.nbytes)
            theirs.read_into(memoryview(data), info.start)
            assert numbers_of(name).encode(values).tobytes() == bytes(data), tensor
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize("kind", ["llama"])
def test_a_file_that_llama_cpp_quantised(prepared, tmp_path):
    model, base, adapter = prepared
    ggml_quantized(base, tmp_path / "q8.gguf", "Q8_0")
    merge_gguf(tmp_path / "q8.gguf", adapter, tmp_path / "q8-merged.gguf")
    export_gguf_lora(adapter, tmp_path / "q8.gguf", tmp_path / "lora.gguf")
    before = torch_logits(model)
    nt.merge_(model, adapter)
    expected = torch_logits(model)
    moved = np.linalg.norm(expected - before)
    merged, beside = (
        logits(tmp_path / "q8-merged.gguf"),
        logits(tmp_path / "q8.gguf", tmp_path / "lora.gguf"),
    )
    assert np.linalg.norm(merged - expected) < 0.2 * moved
    assert np.linalg.norm(beside - expected) < 0.2 * moved


@pytest.mark.parametrize("kind", ["llama"])
def test_k_quants(kind, tmp_path):
    """What only llama.cpp can write is left to it: beside a LoRA, or in another type."""
    model = make_model(kind, hidden_size=256, intermediate_size=256)
    base = tmp_path / "base.gguf"
    write_gguf(base, gguf_tensors(model, kind), kind, model.config)
    adapter = trained_adapter(linear_shapes(model), r=4, num_basis=16, seed=5)
    ggml_quantized(base, tmp_path / "k.gguf", "Q4_K_M")
    with pytest.raises(MismatchError, match="export gguf-lora"):
        merge_gguf(tmp_path / "k.gguf", adapter, tmp_path / "out.gguf")
    merge_gguf(tmp_path / "k.gguf", adapter, tmp_path / "f16.gguf", outtype="F16")
    export_gguf_lora(adapter, tmp_path / "k.gguf", tmp_path / "lora.gguf")
    before = logits(tmp_path / "k.gguf")
    merged = logits(tmp_path / "f16.gguf")
    beside = logits(tmp_path / "k.gguf", tmp_path / "lora.gguf")
    assert np.linalg.norm(merged - beside) < 0.1 * np.linalg.norm(beside - before)


#: Whole tensors cannot go into GGUF.
FAMILY = [(m, method) for m in (llama, gpt2) for method in FAMILIES[m] if method != "whole layers"]


@pytest.mark.parametrize(
    ("make", "method"), FAMILY, ids=lambda part: getattr(part, "__name__", part)
)
def test_the_lora_family(make, method, tmp_path):
    """Against PEFT's own logits, with the adapter beside the model."""
    torch.manual_seed(1)
    model, base = make().eval(), tmp_path / "base.gguf"
    write_gguf(base, gguf_tensors(model, make.__name__), make.__name__, model.config)
    before = logits(base)
    adapter = tmp_path / "adapter"
    expected = torch_logits(train(model, FAMILIES[make][method](), adapter))
    assert np.abs(expected - before).max() > 0.02
    merge_gguf(base, adapter, tmp_path / "merged.gguf")
    assert np.abs(logits(tmp_path / "merged.gguf") - expected).max() < 1e-3
    if "DoRA" not in method and "embedding" not in method:  # llama.cpp only adds, and to layers
        export_gguf_lora(adapter, base, tmp_path / "lora.gguf")
        assert np.abs(logits(base, tmp_path / "lora.gguf") - expected).max() < 1e-3


@pytest.mark.parametrize("task", ["say", "read"])
def test_the_demonstration_says_the_same(task, tmp_path):
    """Text in, the same tokens, and the same greedy answers as its own decoder gives."""
    shipped = Shipped()
    prompts = shipped.prompts[task][:10]
    with open_merged(shipped.base, shipped.adapter(task)) as tensors:
        decoder = shipped.decoder(dict(tensors))
    with AtomicOutput(tmp_path / "kept", directory=True) as output:
        keep(output)
    merged = tmp_path / "merged.gguf"
    merge_gguf(tmp_path / "kept" / "base.gguf", tmp_path / "kept" / task, merged)
    model = llama_cpp.Llama(str(merged), n_ctx=128, verbose=False)
    for prompt, expected in zip(prompts, decoder.generate(prompts, stop=0), strict=True):
        text = shipped.text(prompt)
        assert model.tokenize(text.encode(), add_bos=False) == prompt
        done = model(text, max_tokens=64, temperature=0.0)
        assert done["choices"][0]["text"] == shipped.text(expected)
    model.close()
