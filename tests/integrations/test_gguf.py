"""GGUF with a real client: transformers reads merged files as the merged model, bit for bit."""

from __future__ import annotations

import pytest
import torch
import transformers

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf
from nola_edge.gguf.model import model_of_config, model_of_gguf
from tests.integrations.gguf_models import (
    CONFIGS,
    gguf_tensors,
    linear_shapes,
    make_model,
    write_gguf,
)

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


def adapter_for(model, kind, **options):
    options = {"r": 4, "num_basis": 16, "seed": 5, "fan_in_fan_out": kind == "gpt2", **options}
    return trained_adapter(linear_shapes(model), **options)


def content(path, name):
    with GgufFile.open(path) as file:
        info = file.tensors[name]
        data = bytearray(info.nbytes)
        file.read_into(memoryview(data), info.start)
    return bytes(data)


def test_the_tensors_of_the_merged_model(kind, tmp_path):
    model = make_model(kind)
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, kind), kind, model.config)
    adapter = adapter_for(model, kind)
    report = merge_gguf(tmp_path / "base.gguf", adapter, tmp_path / "out.gguf")
    assert report.merged == len(adapter.modules)
    nt.merge_(model, adapter)
    for name, values in gguf_tensors(model, kind).items():
        assert content(tmp_path / "out.gguf", name) == values.tobytes(), name


@pytest.mark.parametrize("kind", [k for k in CONFIGS if k != "mistral"])  # to it a llama
def test_transformers_reads_the_merged_model(kind, tmp_path):
    def read(name):
        return transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=name, config=model.config
        )

    model = make_model(kind)
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, kind), kind, model.config)
    with torch.no_grad():  # the file is what transformers takes for this model
        before = model(TOKENS).logits
        assert torch.equal(read("base.gguf")(TOKENS).logits, before)
    adapter = adapter_for(model, kind)
    merge_gguf(tmp_path / "base.gguf", adapter, tmp_path / "out.gguf")
    nt.merge_(model, adapter)
    with torch.no_grad():
        expected = model(TOKENS).logits
        assert torch.equal(read("out.gguf")(TOKENS).logits, expected)
    assert not torch.allclose(before, expected, atol=1e-3)


@pytest.mark.parametrize(("dtype", "share"), [("F16", 0.01), ("BF16", 0.05), ("Q8_0", 0.1)])
def test_rounded_files_give_the_logits_of_the_merged_model(dtype, share, tmp_path):
    model = make_model("llama")
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, "llama"), "llama", model.config, dtype)
    adapter = adapter_for(model, "llama")
    merge_gguf(tmp_path / "base.gguf", adapter, tmp_path / "out.gguf")
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="out.gguf", dtype=torch.float32
    )
    with torch.no_grad():
        unmerged = model(TOKENS).logits
        nt.merge_(model, adapter)
        expected = model(TOKENS).logits
        found = read(TOKENS).logits
    assert (found - expected).norm() < share * (expected - unmerged).norm()


def test_a_configuration_tells_the_same_as_a_file(kind, tmp_path):
    model = make_model(kind)
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, kind), kind, model.config)
    with GgufFile.open(tmp_path / "base.gguf") as file:
        ours = model_of_gguf(file)
    config = model_of_config(model.config.to_dict(), tmp_path)
    for module in linear_shapes(model):
        assert config.place(module, "x") == ours.place(module, "x")


def test_a_trained_peft_adapter_of_gpt2(tmp_path):
    """A Conv1D of PEFT goes into a file that stores its matrix the other way."""
    import peft

    from nola_edge.peft import NolaConfig

    model = make_model("gpt2")
    write_gguf(tmp_path / "base.gguf", gguf_tensors(model, "gpt2"), "gpt2", model.config)
    torch.manual_seed(1)
    config = NolaConfig(
        r=4, num_basis_a=8, num_basis_b=8, seed=3, target_modules=["c_attn"],
        fan_in_fan_out=True, init_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    merge_gguf(tmp_path / "base.gguf", tmp_path / "adapter", tmp_path / "out.gguf")
    merged = tuned.merge_and_unload()
    for name, values in gguf_tensors(merged, "gpt2").items():
        assert content(tmp_path / "out.gguf", name) == values.tobytes(), name
    assert ne.Adapter.load(tmp_path / "adapter").config.fan_in_fan_out
