"""What the tuner refuses, and that nothing has changed then."""

from __future__ import annotations

import json
import math

import accelerate
import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.errors import NolaEdgeError
from nola_edge.peft import NolaConfig, NolaLinearLayer
from tests.tuner.models import SMALL, gpt2, llama, logits, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


def test_nan_is_refused_and_the_weights_stay(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = trained(llama())
    before = {n: v.clone() for n, v in model.state_dict().items() if "base_layer" in n}
    with torch.no_grad():
        name = "base_model.model.model.layers.1.mlp.up_proj.nola_beta.default"
        model.get_parameter(name)[3] = math.nan
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        layer.merge()
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(NolaEdgeError, match="coefficient 3 is nan"):
        ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("way", ["merge_and_unload", "merge_adapter"])
def test_offloaded_layers_are_not_merged(way):
    """Not one of the model's: its weights stand elsewhere, and come by for a forward pass."""
    base = accelerate.cpu_offload(llama(), execution_device="cpu")
    model = get_peft_model(base, NolaConfig(**SMALL))
    with pytest.raises(ValueError, match=r"q_proj' is offloaded, .* `nola-edge merge`"):
        getattr(model, way)()
    layers = [layer for layer in model.modules() if isinstance(layer, NolaLinearLayer)]
    assert layers
    assert not any(layer.merged for layer in layers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", 1.5), ("num_basis_a", 0), ("num_basis_b", -3), ("basis", "gauss"),
        ("seed", -1), ("seed", 2**63), ("lora_alpha", 0), ("lora_alpha", math.nan),
        ("nola_dropout", 1.0), ("start", "zero"), ("coefficient_bits", 5), ("bias", "some"),
        ("nola_version", 2), ("module_aliases", ["x"]),
        ("basis_fingerprint", "00" * 32), ("layers_pattern", "layers"),
    ],
)  # fmt: skip
def test_impossible_configurations(field, value):
    with pytest.raises(ValueError, match=field):
        NolaConfig(**{field: value})


def test_an_unknown_field_of_a_file_is_refused(tmp_path):
    trained(llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "rank_pattern": {"q_proj": 8}}))
    with pytest.raises(ValueError, match=r"rank_pattern.* Upgrade nola-edge"):
        PeftModel.from_pretrained(llama(), tmp_path)
    path.write_text(json.dumps({**data, "rank_pattern": {}}))
    PeftModel.from_pretrained(llama(), tmp_path)


def test_targets_that_match_nothing_or_cannot_be_adapted():
    with pytest.raises(ValueError, match=r"Target modules .*nowhere.* not found"):
        get_peft_model(llama(), NolaConfig(**SMALL, target_modules=["nowhere"]))
    with pytest.raises(TypeError, match="not supported"):
        get_peft_model(llama(), NolaConfig(**SMALL, target_modules=["embed_tokens"]))


def test_linear_and_conv1d_cannot_share_an_adapter():
    with pytest.raises(ValueError, match="fan_in_fan_out"):
        get_peft_model(gpt2(), NolaConfig(**SMALL, target_modules=["c_attn", "lm_head"]))


def test_a_file_of_other_counts_is_refused(tmp_path):
    trained(llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "num_basis_a": 25}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(llama(), tmp_path)


class Wrapped(nn.Module):
    """The same layers under other names, as after a library's renaming."""

    def __init__(self, model):
        super().__init__()
        self.language_model = model.model
        self.lm_head = model.lm_head
        self.config = model.config

    def forward(self, ids):
        hidden = self.language_model(ids).last_hidden_state
        return type("Output", (), {"logits": self.lm_head(hidden)})


def test_renamed_modules_are_refused_or_mended(tmp_path):
    """Streams follow from names: a silent wrong basis must be impossible."""
    model = trained(llama(), task_type=None)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    data = json.loads(path.read_text())
    data["target_modules"] = r".*\.(q|k|v|o|gate|up|down)_proj"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="module_aliases"):
        PeftModel.from_pretrained(Wrapped(llama()), tmp_path / "adapter")
    data["module_aliases"] = {"language_model.": "model."}
    path.write_text(json.dumps(data))
    mended = PeftModel.from_pretrained(Wrapped(llama()), tmp_path / "adapter")
    assert torch.equal(logits(mended), expected)
    mended.save_pretrained(tmp_path / "again")
    # The file keeps the names that its streams were made with, for every other reader.
    assert set(ne.Adapter.load(tmp_path / "again").modules) == set(
        ne.Adapter.load(tmp_path / "adapter").modules
    )
    again = PeftModel.from_pretrained(Wrapped(llama()), tmp_path / "again")
    assert torch.equal(logits(again), expected)


def test_a_model_of_other_shapes_is_refused(tmp_path):
    """The coefficients would fit; the random matrices would be others."""
    trained(llama()).save_pretrained(tmp_path / "adapter")
    config = llama().config
    config.hidden_size = 64
    wider = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="other shapes"):
        PeftModel.from_pretrained(wider, tmp_path / "adapter")
    wider = LlamaForCausalLM(config)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(NolaEdgeError, match="other shapes"):
        ne.merge_checkpoint(tmp_path / "wider", tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = {n: v.clone() for n, v in wider.state_dict().items()}
    with pytest.raises(NolaEdgeError, match="other shapes"):
        nt.merge_(wider, tmp_path / "adapter")
    assert all(torch.equal(v, before[n]) for n, v in wider.state_dict().items())


def test_a_local_base_is_recorded_and_merging_twice_refused(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    trained(base).save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(NolaEdgeError, match="already merged"):
        ne.merge_checkpoint(tmp_path / "merged", tmp_path / "adapter", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    reloaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    reloaded.save_pretrained(tmp_path / "again")
    configs = [ne.Adapter.load(tmp_path / name).config for name in ("adapter", "again")]
    assert configs[0].base_fingerprint == configs[1].base_fingerprint is not None


def test_a_tied_embedding_that_was_trained_is_refused(tmp_path):
    config = llama().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    trained(base, modules_to_save=["embed_tokens"]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(NolaEdgeError, match="tied to the output layer"):
        ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_other_coefficients_under_a_name_that_is_taken(tmp_path):
    """PEFT takes the tensors of such a file, and not its configuration."""
    trained(llama(), seed=1).save_pretrained(tmp_path / "one")
    trained(llama(), seed=2).save_pretrained(tmp_path / "two")
    trained(llama(), seed=1, coefficient_bits=8).save_pretrained(tmp_path / "bits")
    model = PeftModel.from_pretrained(llama(), tmp_path / "one")
    before = logits(model)
    for other, field in (("two", "seed"), ("bits", "coefficient_bits")):
        with pytest.raises(ValueError, match=f"`{field}`"):
            model.load_adapter(tmp_path / other, "default")
    assert torch.equal(logits(model), before)
    model.load_adapter(tmp_path / "one", "default")
    model.load_adapter(tmp_path / "two", "second")
    assert torch.equal(logits(model), before)


def test_quantised_tensors_in_an_adapter_without_bits(tmp_path):
    trained(llama(), coefficient_bits=8).save_pretrained(tmp_path / "bits")
    model = trained(llama())
    tensors = peft.utils.load_peft_weights(tmp_path / "bits")
    with pytest.raises(ValueError, match="quantised otherwise"):
        peft.set_peft_model_state_dict(model, tensors)


def test_a_refused_adapter_leaves_the_model_as_it_was(tmp_path):
    trained(llama()).save_pretrained(tmp_path / "adapter")
    config = llama().config
    config.hidden_size = 64
    wider = LlamaForCausalLM(config)
    names = set(wider.state_dict())
    with pytest.raises(ValueError, match="other shapes"):
        PeftModel.from_pretrained(wider, tmp_path / "adapter")
    assert set(wider.state_dict()) == names


def test_one_broken_layer_leaves_all_layers_unmerged():
    model = trained(llama())
    layers = [m for m in model.modules() if isinstance(m, NolaLinearLayer)]
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    with torch.no_grad():
        layers[-1].nola_beta["default"][0] = math.nan
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge()
        assert not any(layer.merged for layer in layers)
        for layer, weight in zip(layers, before, strict=True):
            assert torch.equal(layer.get_base_layer().weight, weight)


def test_a_failed_second_merge_leaves_the_first():
    model = trained(llama())
    model.add_adapter("broken", NolaConfig(**{**SMALL, "seed": 5, "target_modules": "all-linear"}))
    layer = next(m for m in model.modules() if isinstance(m, NolaLinearLayer))
    layer.merge(adapter_names=["default"])
    merged = layer.get_base_layer().weight.detach().clone()
    with torch.no_grad():
        layer.nola_beta["broken"][0] = math.inf
    with pytest.raises(ValueError, match="broken"):
        layer.merge(adapter_names=["broken"])
    assert layer.merged_adapters == ["default"]
    assert torch.equal(layer.get_base_layer().weight, merged)


def test_the_longest_alias_wins_in_any_order():
    aliases = {"model.": "x.", "model.language_model.": "model."}
    for order in (aliases, dict(reversed(aliases.items()))):
        config = NolaConfig(module_aliases=order)
        assert config.stream_module("model.language_model.q") == "model.q"
        assert config.stream_module("model.head") == "x.head"
        assert config.stream_module("other") == "other"
