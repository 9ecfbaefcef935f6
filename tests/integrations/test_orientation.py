"""Adapters of Conv1D and Linear layers together, whose square weights no shape tells apart."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.errors import MismatchError
from nola_edge.transformers import NolaMergeConfig
from tests.conftest import snapshot

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16, tie_word_embeddings=False
    )
    return transformers.GPT2LMHeadModel(config)


def saved(folder, targets, make=gpt2, **options):
    """Write a base, and a LoRA of it as PEFT saves it."""
    torch.manual_seed(1)
    model = make()
    model.save_pretrained(folder / "base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, **options))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    tuned.save_pretrained(folder / "lora")
    return folder / "base", folder / "lora", tuned


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_what_peft_cannot_say_is_refused_everywhere(tmp_path, options):
    base, lora, _ = saved(tmp_path, ["attn.c_proj", "lm_head"], **options)
    before = snapshot(tmp_path)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    state = {name: values.clone() for name, values in model.state_dict().items()}
    for merge in (
        lambda: ne.merge_checkpoint(base, lora, tmp_path / "out"),
        lambda: nt.merge_(model, lora),
        lambda: transformers.GPT2LMHeadModel.from_pretrained(
            base, quantization_config=NolaMergeConfig(lora)
        ),
    ):
        with pytest.raises(
            MismatchError, match=r"c_proj.weight: is stored as \(in, out\), as a Con"
        ):
            merge()
    assert snapshot(tmp_path) == before
    assert all(torch.equal(state[name], values) for name, values in model.state_dict().items())


def test_one_kind_is_merged(tmp_path):
    base, lora, tuned = saved(tmp_path, ["attn.c_proj"], fan_in_fan_out=True)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    nt.merge_(model, lora)
    theirs = tuned.merge_and_unload().state_dict()
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=1e-6)
    ne.merge_checkpoint(base, lora, tmp_path / "out")


def t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_ff=48, d_kv=16, num_heads=2, num_layers=1
    )
    return transformers.T5ForConditionalGeneration(config)


def test_the_tied_embedding_of_t5_is_refused(tmp_path):
    base, lora, _ = saved(tmp_path, ["shared"], t5)
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=r"shared.weight: is tied to the output layer"):
        ne.merge_checkpoint(base, lora, tmp_path / "out")
    assert snapshot(tmp_path) == before
