"""A mixture of experts keeps their matrices in parameters that "all-linear" does not reach."""

from __future__ import annotations

import warnings

import pytest
from peft import get_peft_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from nola_edge.peft import NolaConfig
from tests.tuner.models import SMALL, llama

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
MIXTURES = [
    MixtralConfig(**SIZES, num_local_experts=4),
    Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=16, head_dim=8),
    GptOssConfig(**SIZES, num_local_experts=4, head_dim=8),
]


def said(model, targets):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_peft_model(model, NolaConfig(**SMALL, target_modules=targets))
    return [str(w.message) for w in caught if "leaves out" in str(w.message)]


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_the_experts_that_are_left_out_are_named(config):
    (message,) = said(AutoModelForCausalLM.from_config(config), "all-linear")
    assert "'model.layers.0.mlp.experts.gate_up_proj' (4 x " in message
    assert " and 3 more" in message
    assert said(AutoModelForCausalLM.from_config(config), ["q_proj"]) == []  # as was asked for


def test_other_models_are_not_warned_of():
    assert said(llama(), "all-linear") == []
    convolution = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Linear(4, 4), nn.Linear(4, 4))
    assert said(convolution, "all-linear") == []
    weight_norm(convolution[0], dim=2)  # as in Wav2Vec2
    assert said(convolution, "all-linear") == []
