"""An adapter on a weight that another module uses too is refused; the model stays as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from nola_edge.peft import NolaConfig, NolaLinearLayer
from tests.tuner.models import IDS, SMALL, gpt2, llama, logits

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)
        self.c = nn.Linear(16, 16)

    def forward(self, x):
        return self.c(self.b(torch.tanh(self.a(x))))


def one_parameter():
    net = Net()
    net.b.weight = net.a.weight
    return net


def one_memory():
    net = Net()
    net.b.weight = nn.Parameter(net.a.weight.data)
    return net


def one_module():
    net = Net()
    net.b = net.a
    return net


def one_module_in_a_list():
    net = Net()
    net.a = nn.ModuleList([net.b])
    return net


def without_an_adapter(model, trained):
    assert not any(isinstance(module, NolaLinearLayer) for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == trained


def refused(model, match, **options):
    """Check that nothing has changed; the message is one printable line."""
    trained = [p.requires_grad for p in model.parameters()]
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(ValueError, match=match) as refusal:
        get_peft_model(model, NolaConfig(**{**SMALL, "target_modules": "all-linear", **options}))
    assert str(refusal.value).isprintable()
    without_an_adapter(model, trained)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("make", [one_parameter, one_memory])
@pytest.mark.parametrize("targets", ["all-linear", ["a", "b"], ["a"], ["b"]])
def test_two_layers(make, targets):
    name, other = ("b", "a") if targets == ["b"] else ("a", "b")
    refused(make(), f"weight of '{name}' is also that of '{other}'", target_modules=targets)


@pytest.mark.parametrize("make", [one_module, one_module_in_a_list])
def test_one_layer_in_two_places(make):
    refused(make(), r"weight of 'a(\.0)?' is also that of 'b'")


@pytest.mark.parametrize("make", [one_parameter, one_memory, one_module, one_module_in_a_list])
def test_the_message_s_advice(make):
    """Left out, the layers do no harm, and merged weights compute what the adapter does."""
    options = {**SMALL, "target_modules": "all-linear", "init_weights": False}
    model = get_peft_model(make(), NolaConfig(**options, exclude_modules=["a", "a.0", "b"])).eval()
    if make is not one_module_in_a_list:
        x = torch.randn(3, 16)
        torch.testing.assert_close(model.merge_and_unload()(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_block_that_is_used_twice_may_be_adapted():
    """It is one place: the adapter belongs to every use."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            block = Net()
            self.blocks = nn.ModuleList([block, block])

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x))

    options = {**SMALL, "target_modules": ["a", "c"], "init_weights": False}
    model = get_peft_model(Twice(), NolaConfig(**options)).eval()
    x = torch.randn(3, 16)
    with torch.no_grad():
        before, after = model(x), model.merge_and_unload()(x)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_tied_output_layer(make, tmp_path):
    config = make().config
    config.tie_word_embeddings = True
    tied = type(make())(config)
    targets = ["lm_head"]
    refused(
        tied, "weight of 'lm_head' is also that of '.*(embed_tokens|wte)'", target_modules=targets
    )
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone())
    options = {**SMALL, "target_modules": targets, "init_weights": False}
    untied = get_peft_model(tied, NolaConfig(**options))
    untied.save_pretrained(tmp_path)
    apart = logits(untied)
    torch.testing.assert_close(logits(untied.merge_and_unload()), apart, rtol=1e-3, atol=1e-3)
    config.tie_word_embeddings = True  # PEFT notes in it that the merged ones are not
    other = type(make())(config)
    with pytest.raises(ValueError, match="also that of"):
        PeftModel.from_pretrained(other, tmp_path)
    without_an_adapter(other, [True] * len(list(other.parameters())))


def test_every_linear_layer_of_a_captioner():
    """BLIP's decoder is tied inside the text model, where "all-linear" does not look for it."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 4, "projection_dim": 32, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "image_size": 16,
        "num_attention_heads": 4, "patch_size": 8, "projection_dim": 32,
    }  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    model = transformers.BlipForConditionalGeneration(config)
    refused(model, "weight of 'text_decoder.cls.predictions.decoder' is also .*word_embeddings")
    options = {**SMALL, "target_modules": "all-linear", "init_weights": False}
    left_out = ["text_decoder.cls.predictions.decoder"]
    adapted = get_peft_model(model, NolaConfig(**options, exclude_modules=left_out)).eval()
    call = {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": IDS[:, :6]}
    with torch.no_grad():
        before, after = adapted(**call).logits, adapted.merge_and_unload()(**call).logits
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)


def test_a_refused_second_adapter_leaves_the_first():
    model = get_peft_model(one_parameter(), NolaConfig(**SMALL, target_modules=["c"]))
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="'a' is also that of 'b'"):
        model.add_adapter("second", NolaConfig(**SMALL, target_modules=["a", "c"]))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert list(model.peft_config) == ["default"]
