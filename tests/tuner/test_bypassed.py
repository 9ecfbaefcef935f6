"""Layers whose weight is used without calling them are refused, named, or called after all."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import nola_edge.torch as nt
from nola_edge.peft import NolaConfig
from tests.tuner.models import IDS, SMALL, train

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
RANDOM = {**SMALL, "init_weights": False}


def small(kind, **options):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    transformers.set_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**sizes, **options))


def mamba():
    return small(transformers.MambaConfig)


def falcon_mamba():
    return small(transformers.FalconMambaConfig)


def mamba2():
    return small(transformers.Mamba2Config, num_heads=8, head_dim=8, n_groups=1)


def zamba2():
    """Not in LoRA's list, with the same kernels."""
    return small(
        transformers.Zamba2Config, num_attention_heads=4, layers_block_type=["mamba", "hybrid"],
        mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8, intermediate_size=48, num_mem_blocks=1,
    )  # fmt: skip


@pytest.mark.parametrize("make", [mamba, falcon_mamba, mamba2])
@pytest.mark.parametrize("targets", [["in_proj", "out_proj"], "all-linear"])
def test_mamba_is_refused_as_lora_does(make, targets):
    model = make()
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="incompatible"):
        get_peft_model(make(), LoraConfig(target_modules=targets))
    with pytest.raises(ValueError, match=r"'backbone.layers.0.mixer.out_proj'") as refusal:
        get_peft_model(model, NolaConfig(**SMALL, target_modules=targets))
    assert str(refusal.value).isprintable()
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    options = {**SMALL, "target_modules": targets, "exclude_modules": ["out_proj", "dt_proj"]}
    losses = train(get_peft_model(model, NolaConfig(**options)))
    assert losses[-1] < losses[0]


def test_other_models_with_mamba_s_kernels_are_refused_too():
    with pytest.raises(ValueError, match=r"out_proj' is incompatible .*Zamba2MambaMixer"):
        get_peft_model(zamba2(), NolaConfig(**SMALL, target_modules=["out_proj"]))


def test_an_output_layer_that_is_called_is_not_refused():
    """As in most transformers with a layer of that name."""
    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
            word_embed_proj_dim=32,
        )
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter has no effect")
        losses = train(get_peft_model(opt, NolaConfig(**SMALL, target_modules=["out_proj"])))
    assert losses[-1] < losses[0]


def test_attention_of_torch_is_named():
    """SigLIP's pooling head, under "all-linear"."""
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        image_size=16, patch_size=8,
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config)
    name = r"'(vision_model\.)?head\.attention\.out_proj'"
    with pytest.warns(UserWarning, match=rf"no effect in {name}: torch.nn.MultiheadAttention"):
        adapted = get_peft_model(model, NolaConfig(**SMALL, target_modules="all-linear"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter has no effect")  # once is enough
        adapted(pixel_values=torch.randn(2, 3, 16, 16)).pooler_output.sum().backward()
        left_out = NolaConfig(**SMALL, target_modules=["fc1"], exclude_modules=["out_proj"])
        adapted.add_adapter("second", left_out)
    without = {n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None}
    assert {n.split(".nola")[0].rsplit(".", 1)[1] for n in without} == {"out_proj"}


def wavlm():
    return transformers.WavLMModel(
        transformers.WavLMConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            conv_dim=(16,), conv_kernel=(10,), conv_stride=(5,), num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, vocab_size=32,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "call", "bypassed"),
    [
        (wavlm, {"input_values": torch.randn(1, 400)}, ["k_proj", "out_proj", "q_proj"]),
        (mamba, {"input_ids": IDS}, ["dt_proj"]),
    ],
)
def test_a_model_that_uses_weights_without_calling_layers(make, call, bypassed):
    """In a forward pass it shows, whatever the model; nothing is said of layers that are called."""
    left_out = ["out_proj"] if make is mamba else []
    options = {**RANDOM, "target_modules": "all-linear", "exclude_modules": left_out}
    model = get_peft_model(make(), NolaConfig(**options))
    with pytest.warns(UserWarning, match="The adapter has no effect") as said:
        output = model(**call)[0]
    output.float().sum().backward()
    said = next(str(w.message) for w in said if "no effect" in str(w.message))
    assert all(f"{name}'" in said for name in bypassed)
    untrained = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    modules = {n.split(".nola")[0].removeprefix("base_model.model.") for n in untrained}
    assert {name.rsplit(".", 1)[1] for name in modules} >= set(bypassed)
    assert all(name.split(".")[-1] in (*bypassed, "v_proj") for name in modules), modules
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter has no effect")
        model(**call)
        with model.disable_adapter():
            model(**call)


class Reader(nn.Module):
    """Reads the dtype of a weight and calls its layer, as T5 does; another's weight it takes."""

    def __init__(self):
        super().__init__()
        self.called = nn.Linear(8, 8)
        self.taken = nn.Linear(8, 8)

    def forward(self, x):
        x = self.called(x.to(self.called.weight.dtype))
        return nn.functional.linear(x, self.taken.weight)


def test_only_what_has_no_effect_is_named():
    model = get_peft_model(Reader(), NolaConfig(**RANDOM, target_modules=["called", "taken"]))
    model.merge_adapter()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter has no effect")
        model(torch.randn(2, 8))  # a merged weight has the adapter in it
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="no effect in 'taken': the model uses"):
        model(torch.randn(2, 8))
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 9))  # an error of the model's own is passed on
    assert isinstance(pickle.loads(pickle.dumps(copy.deepcopy(model))), type(model))


@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])])
@pytest.mark.parametrize("grad", [False, True])
def test_torch_s_encoder_layer_calls_adapted_layers(mask, grad):
    """Its fast path in evaluation would compute with the base weights alone."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    model = get_peft_model(
        nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2)}),
        NolaConfig(**RANDOM, target_modules=["linear1", "linear2"]),
    )
    encoder = model.base_model.model["encoder"]
    expected = encoder.train()(x, src_key_padding_mask=mask).detach()
    seen = slice(None) if mask is None else slice(0, 3)
    with torch.set_grad_enabled(grad):
        evaluated = encoder.eval()(x, src_key_padding_mask=mask)[:, seen]
    torch.testing.assert_close(evaluated, expected[:, seen], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.merge_adapter()
        merged = encoder(x, src_key_padding_mask=mask)[:, seen]
        with model.disable_adapter():
            base = encoder(x, src_key_padding_mask=mask)[:, seen]
    torch.testing.assert_close(merged, expected[:, seen], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(base, merged, rtol=0.1, atol=0.1)


def test_a_layer_of_one_s_own_has_no_weight_to_take():
    reader = Reader()
    reader.taken = nt.NolaLinear(reader.taken, "taken", r=2, num_basis_a=4, num_basis_b=4, seed=1)
    with pytest.raises(AttributeError, match="NolaLinear 'taken' has no weight"):
        reader(torch.randn(2, 8))
    assert not hasattr(reader.taken, "weight")
    assert not hasattr(reader.taken, "nothing")
