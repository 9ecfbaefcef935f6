"""What is saved of an adapter does not depend on how its model was wrapped, and is never a part."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaForCausalLM

import nola_edge as ne
from nola_edge.peft import NolaConfig
from tests.tuner.models import SMALL, llama, logits, same_tensors, train

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
RANDOM = {**SMALL, "target_modules": ["q_proj", "down_proj"], "init_weights": False}
WHOLE = {**RANDOM, "bias": "nola_only", "modules_to_save": ["lm_head"]}


def adapted(base, **options):
    torch.manual_seed(11)
    return get_peft_model(base, NolaConfig(**RANDOM | options))


def wrap_layers(model, wrapper):
    layers = model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = wrapper(layer)
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Base, and the adapter of a model that nothing wraps."""
    folder = tmp_path_factory.mktemp("plain")
    llama().save_pretrained(folder / "base")
    adapted(from_base(folder)).save_pretrained(folder / "adapter")
    return folder


def from_base(folder):
    return LlamaForCausalLM.from_pretrained(folder / "base")


def tensors_of(adapter):
    return load_file(adapter / "adapter_model.safetensors")


def same_files(ours, theirs):
    """Compare tensors byte for byte, and every field but the class that PEFT notes."""
    found, wanted = tensors_of(ours), tensors_of(theirs)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].tobytes() == values.tobytes(), name
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (ours, theirs)]
    for config in configs:
        del config["auto_mapping"], config["base_model_name_or_path"]
    assert configs[0] == configs[1]
    assert configs[0]["base_fingerprint"] is not None


@pytest.mark.parametrize("wrapper", [torch.compile, checkpoint_wrapper])
@pytest.mark.parametrize("first", ["wrapper", "adapter"])
def test_wrapped_layers(wrapper, first, plain, tmp_path):
    base = from_base(plain)
    if first == "wrapper":
        wrap_layers(base, wrapper)
    model = adapted(base)
    if first == "adapter":
        wrap_layers(base, wrapper)
    model.save_pretrained(tmp_path / "adapter")
    same_files(tmp_path / "adapter", plain / "adapter")


@pytest.mark.parametrize("wrapper", [torch.compile, checkpoint_wrapper])
def test_loading_into_wrapped_layers(wrapper, plain, tmp_path):
    loaded = PeftModel.from_pretrained(wrap_layers(from_base(plain), wrapper), plain / "adapter")
    loaded.save_pretrained(tmp_path / "again")
    same_files(tmp_path / "again", plain / "adapter")


@pytest.mark.parametrize("wrapper", [torch.compile, nn.DataParallel])
def test_a_model_that_was_wrapped_before(wrapper, plain, tmp_path):
    """PEFT lists every linear layer by its name behind the wrapper; the file knows none."""
    model = adapted(wrapper(from_base(plain)), target_modules="all-linear")
    model.save_pretrained(tmp_path / "wrapped")
    ne.merge_checkpoint(plain / "base", tmp_path / "wrapped", tmp_path / "merged")
    loaded = PeftModel.from_pretrained(from_base(plain), tmp_path / "wrapped")
    same_tensors(loaded.merge_and_unload(), tmp_path / "merged")


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_the_state_of_a_wrapper(wrap, tmp_path):
    """As a Trainer hands it over: every kind of tensor that an adapter's file may hold."""
    model = adapted(llama_with_biases(), **{**WHOLE, "coefficient_bits": 8})
    model.save_pretrained(tmp_path / "plain", save_embedding_layers=True)
    state = wrap(model).state_dict()
    assert not state.keys() & model.state_dict().keys()
    model.save_pretrained(tmp_path / "wrapped", state_dict=state, save_embedding_layers=True)
    names = tensors_of(tmp_path / "plain").keys()
    assert any(name.endswith("bias") for name in names)
    assert any(name.endswith("lm_head.weight") for name in names)
    assert any(name.endswith("embed_tokens.weight") for name in names)
    assert names == tensors_of(tmp_path / "wrapped").keys()
    loaded = PeftModel.from_pretrained(llama_with_biases(), tmp_path / "wrapped")
    unwrapped = PeftModel.from_pretrained(llama_with_biases(), tmp_path / "plain")
    assert torch.equal(logits(loaded), logits(unwrapped))


def llama_with_biases():
    config = llama().config
    config.attention_bias = True
    torch.manual_seed(5)
    return LlamaForCausalLM(config)


def test_a_module_may_be_called_module(tmp_path):
    """Where DDP keeps a model, others may have a layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.ModuleList([nn.Linear(8, 8)])

        def forward(self, x):
            return self.module[0](x)

    model = adapted(Net(), target_modules=["0"])
    model.save_pretrained(tmp_path)
    assert set(ne.Adapter.load(tmp_path).modules) == {"module.0"}
    again = PeftModel.from_pretrained(Net(), tmp_path)
    layer = again.base_model.model.module[0]
    assert layer.nola_factors["default"].module == "module.0"
    assert torch.equal(
        layer.nola_beta["default"], model.base_model.model.module[0].nola_beta["default"]
    )


def nothing(state):
    return {}


def without_the_adapter(state):
    return {name: values for name, values in state.items() if "nola_" not in name}


def without_one_layer(state):
    return {name: values for name, values in state.items() if "layers.1.mlp" not in name}


def not_gathered(state):
    return {name: values[:0] if "nola_beta" in name else values for name, values in state.items()}


@pytest.mark.parametrize("part", [nothing, without_the_adapter, without_one_layer, not_gathered])
def test_a_part_of_an_adapter_is_not_saved(part, plain, tmp_path):
    model = adapted(from_base(plain))
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".md"}
    with torch.no_grad():
        for values in model.parameters():
            values.add_(1)
    with pytest.raises(ValueError, match=r"lacks coefficients: 'base_model.*nola_") as refusal:
        model.save_pretrained(tmp_path, state_dict=part(model.state_dict()))
    assert str(refusal.value).isprintable()
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".md"}


def test_a_selected_state_may_be_handed_over(plain, tmp_path):
    from peft import get_peft_model_state_dict

    model = adapted(from_base(plain))
    model.save_pretrained(tmp_path, state_dict=get_peft_model_state_dict(model))
    same_files(tmp_path, plain / "adapter")


def test_a_second_adapter_knows_its_base(plain, tmp_path):
    model = adapted(from_base(plain))
    model.add_adapter("two", NolaConfig(**{**RANDOM, "seed": 2}))
    train(model, steps=1)
    for folder in ("once", "twice"):
        model.save_pretrained(tmp_path / folder)
        configs = [ne.Adapter.load(tmp_path / folder / name).config for name in ("", "two")]
        assert configs[0].base_fingerprint == configs[1].base_fingerprint is not None
    other = llama(seed=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ne.NolaEdgeError, match="base_fingerprint"):
        ne.merge_checkpoint(tmp_path / "other", tmp_path / "once" / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()
