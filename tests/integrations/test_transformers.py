"""Merging while transformers loads: the bits of a merged checkpoint, and nothing left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    MismatchError,
    NolaEdgeWarning,
    NotFiniteError,
)
from nola_edge.models.mapped_memory import MappedFiles
from nola_edge.transformers import NolaMergeConfig, load_merged
from tests.conftest import snapshot

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def decoder(**options):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **options}))


def shapes_of(model, *parts):
    return {
        name.removesuffix(".weight"): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if any(part in name for part in parts)
    }


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def saved(request, tmp_path):
    """A base in several files and an adapter for all its linear layers."""
    model = decoder().to(request.param)
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    adapter = trained_adapter(shapes_of(model, "_proj."), r=8, num_basis=48, seed=3)
    adapter.save(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def load(base: Path, adapter=None, cls=transformers.AutoModelForCausalLM, **options):
    if adapter is not None:
        config = adapter if isinstance(adapter, NolaMergeConfig) else NolaMergeConfig(adapter)
        options["quantization_config"] = config
    return cls.from_pretrained(base, **options)


def assert_same(one, other):
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.mark.parametrize("rules", [{"seen": "model"}, ["seen=model"]])
def test_modules_that_the_model_calls_otherwise(tmp_path, rules):
    """What the refusal advises can be given here as well."""
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    shapes = shapes_of(model, "q_proj.")
    named = {f"seen{name.removeprefix('model')}": shape for name, shape in shapes.items()}
    trained_adapter(named, r=8, num_basis=48, seed=3).save(tmp_path / "adapter")
    given = tmp_path / "base", tmp_path / "adapter"
    with pytest.raises(MismatchError, match="rename= in Python"):
        load(*given)
    with pytest.raises(ArgumentError, match="unused"):
        load(given[0], NolaMergeConfig(given[1], rename={"seen": "model", "unused": "x"}))
    ne.merge_checkpoint(*given, tmp_path / "merged", rename=rules)
    expected = load(tmp_path / "merged")
    assert_same(load(given[0], NolaMergeConfig(given[1], rename=rules)), expected)
    found = load_merged(transformers.AutoModelForCausalLM, *given, rename=rules)
    assert_same(found, expected)
    assert json.loads(json.dumps(NolaMergeConfig(given[1], rename=rules).to_dict()))["rename"] == {
        "seen": "model"
    }


def test_the_bits_of_a_merged_checkpoint(saved, tmp_path):
    base, adapter = saved
    before = snapshot(base)
    ne.merge_checkpoint(base, adapter, tmp_path / "merged")
    expected = load(tmp_path / "merged")
    assert_same(load(base, adapter), expected)
    assert_same(load(base, adapter, device_map="cpu"), expected)
    assert_same(nt.load_merged(transformers.LlamaForCausalLM, base, adapter), expected)
    assert snapshot(base) == before


def test_another_dtype_is_that_of_loading_and_merging_then(saved):
    base, adapter = saved
    expected = load(base, dtype=torch.bfloat16)
    nt.merge_(expected, adapter)
    assert_same(load(base, adapter, dtype=torch.bfloat16), expected)


def test_a_plain_model_is_what_remains(saved, tmp_path):
    base, adapter = saved
    model, plain = load(base, adapter), load(base)
    assert set(model.__dict__) == set(plain.__dict__)
    assert model.config.to_dict() == plain.config.to_dict()
    assert not getattr(model, "is_quantized", False)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    assert_same(load(tmp_path / "saved"), model)
    model.half().float()  # which a quantised model refuses
    model.train()
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_several_adapters_with_weights(saved, tmp_path):
    base, adapter = saved
    other = trained_adapter(shapes_of(decoder(), "q_proj"), r=4, num_basis=20, seed=9)
    adapters = [(adapter, 0.7), (other, 0.3)]
    ne.merge_checkpoint(base, adapters, tmp_path / "merged")
    assert_same(load(base, adapters), load(tmp_path / "merged"))


def test_a_real_encoder_in_models_that_name_it_differently(encoder, encoder_adapter, tmp_path):
    ne.merge_checkpoint(encoder, encoder_adapter, tmp_path / "merged")
    for cls in (transformers.AutoModel, transformers.AutoModelForSequenceClassification):
        torch.manual_seed(0)
        expected = load(tmp_path / "merged", cls=cls)
        torch.manual_seed(0)
        assert_same(load(encoder, encoder_adapter, cls=cls), expected)


def test_weights_that_are_stored_transposed(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    shapes = {k: v[::-1] for k, v in shapes_of(model, "c_attn.weight").items()}
    trained_adapter(shapes, r=4, num_basis=20, seed=1, fan_in_fan_out=True).save(
        tmp_path / "adapter"
    )
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert_same(load(tmp_path / "base", tmp_path / "adapter"), load(tmp_path / "merged"))


def test_what_does_not_fit_is_refused(saved, tmp_path):
    base, _ = saved
    stranger = trained_adapter({"model.layers.7.self_attn.q_proj": (64, 64)}, r=2, num_basis=4)
    with pytest.raises(MismatchError, match=r"model\.layers\.7"):
        load(base, stranger)
    other = trained_adapter({"model.layers.0.self_attn.q_proj": (64, 32)}, r=2, num_basis=4)
    with pytest.raises(MismatchError):
        load(base, other)
    with pytest.raises(AdapterError):
        NolaMergeConfig(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [5, "a\0b"])
def test_what_is_no_path(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = decoder()
    loaders = {
        "base": [
            lambda: nt.load_merged(transformers.AutoModelForCausalLM, value, "adapter"),
            lambda: nt.AdapterSwitch(model, value),
        ],
        "adapter": [lambda: NolaMergeConfig(value), lambda: nt.merge_(model, value)],
    }
    for name, calls in loaders.items():
        for call in calls:
            with pytest.raises(ArgumentError, match=f"^{name}: "):
                call()
    assert not snapshot(tmp_path)


def test_a_weight_that_the_checkpoint_lacks(saved):
    base, adapter = saved
    index = base / "model.safetensors.index.json"
    described = json.loads(index.read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    bare = Path(described["weight_map"].pop(name))
    tensors = load_file(base / bare)
    del tensors[name]
    save_file(tensors, base / bare, metadata={"format": "pt"})
    index.write_text(json.dumps(described))
    with pytest.raises(MismatchError, match="the checkpoint has no weight for it"):
        load(base, adapter)


def test_a_tied_weight_is_refused(tmp_path):
    decoder(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    adapter = trained_adapter({"lm_head": (100, 64)}, r=2, num_basis=4)
    with pytest.raises(MismatchError, match="tie_word_embeddings=False"):
        load(tmp_path / "base", adapter)


def test_what_overflows_is_refused(tmp_path):
    model = decoder().half()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.fill_(65000.0)
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(shapes_of(model, "q_proj"), r=8, num_basis=48, seed=3)
    with pytest.raises(NotFiniteError):
        load(tmp_path / "base", [(adapter, 1e6)])


def test_another_base_than_the_recorded_one(tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(shapes_of(model, "_proj."), r=4, num_basis=8, base=tmp_path / "base")
    load(tmp_path / "base", adapter)
    load(tmp_path / "base", adapter).save_pretrained(tmp_path / "merged")
    with pytest.raises(MismatchError, match="already merged") as caught:
        load(tmp_path / "merged", adapter)
    assert "check_base=False" in str(caught.value)
    load(tmp_path / "merged", NolaMergeConfig(adapter, check_base=False))
    causal = transformers.AutoModelForCausalLM
    with pytest.raises(MismatchError, match="already merged"):
        load_merged(causal, tmp_path / "merged", adapter)
    load_merged(causal, tmp_path / "merged", adapter, check_base=False)


def test_an_adapter_that_adds_nothing_is_warned_of_once(saved):
    with pytest.warns(NolaEdgeWarning, match="weight: is 0") as found:
        load(saved[0], [(saved[1], 0)])
    assert [w.category for w in found].count(NolaEdgeWarning) == 1


def test_a_base_that_cannot_be_compared_with_the_recorded_one(tmp_path):
    """Transformers passes over a tensor that the index does not name; the check has a way out."""
    model = decoder()
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="100KB")
    adapter = trained_adapter(shapes_of(model, "_proj."), r=4, num_basis=8, base=base)
    path = min(base.glob("*.safetensors"))
    save_file({**load_file(path), "left.over": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=r"left\.over.*check_base=False"):
        load(base, adapter)
    nt.merge_(model, adapter)
    assert_same(load(base, NolaMergeConfig(adapter, check_base=False)), model)


def test_mapped_weights_are_read_from_their_files(saved, monkeypatch):
    """So that the mapping's pages do not stay in memory beside the merged weights."""
    base, adapter = saved
    found, find = [], MappedFiles.find

    def spy(self, tensor):
        result = find(self, tensor)
        found.append(result)
        return result

    monkeypatch.setattr(MappedFiles, "find", spy)
    model = load(base, adapter)
    assert len(found) == len(shapes_of(model, "_proj."))
    if sys.platform == "linux":
        assert None not in found


def test_tensors_that_are_given_stay_as_they_are(saved, tmp_path):
    base, adapter = saved
    given = dict(load(base).state_dict())
    before = {name: tensor.clone() for name, tensor in given.items()}
    config = transformers.AutoConfig.from_pretrained(base)
    ne.merge_checkpoint(base, adapter, tmp_path / "merged")
    model = transformers.LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=given, quantization_config=NolaMergeConfig(adapter),
        dtype=given["model.norm.weight"].dtype,
    )  # fmt: skip
    assert_same(model, load(tmp_path / "merged"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())


def test_layers_that_would_be_offloaded_to_disk(saved, tmp_path):
    """Transformers would read them from the base, as if there were no adapter."""
    base, _ = saved
    tokens = torch.tensor([[5, 6, 7, 8]])
    places = {
        "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
        "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk",
    }  # fmt: skip
    every = shapes_of(decoder(), "_proj.")
    adapter = trained_adapter(every, r=8, num_basis=48, seed=3)
    options = {"device_map": places, "offload_folder": tmp_path / "offload"}
    with pytest.raises(MismatchError, match="write a merged checkpoint first"):
        load(base, adapter, **options)
    first = {name: shape for name, shape in every.items() if "layers.0." in name}
    adapter = trained_adapter(first, r=8, num_basis=48, seed=3)
    ne.merge_checkpoint(base, adapter, tmp_path / "merged")
    with torch.no_grad():
        found = load(base, adapter, **options)(tokens).logits
        assert torch.equal(found, load(tmp_path / "merged")(tokens).logits)


def test_layers_that_are_offloaded_to_the_cpu(saved, tmp_path, monkeypatch):
    """They are merged by then; as with a GPU too small for the model, which is not needed here."""
    base, adapter = saved
    ne.merge_checkpoint(base, adapter, tmp_path / "merged")
    monkeypatch.setattr(
        transformers.modeling_utils,
        "accelerate_dispatch",
        lambda model, *_: accelerate.cpu_offload(model, execution_device="cpu"),
    )
    model = load(base, adapter, device_map={"model": "cpu", "lm_head": "cpu:0"})
    assert all(parameter.is_meta for parameter in model.parameters())
    expected, tokens = load(tmp_path / "merged"), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
