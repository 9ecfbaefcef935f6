"""Small models made on the spot, and what the tests of the tuner do with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nola_edge.files.checkpoint import Checkpoint
from nola_edge.peft import NolaConfig

SMALL = {"r": 4, "num_basis_a": 24, "num_basis_b": 20, "seed": 77}


def llama(dtype=torch.float32, seed=0):
    transformers.set_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def gpt2(dtype=torch.float32):
    transformers.set_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).to(dtype)


IDS = torch.arange(3, 31).reshape(2, 14)


def train(model, steps=8, lr=2e-2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def trained(model, **options):
    adapted = get_peft_model(
        model, NolaConfig(**{**SMALL, "target_modules": "all-linear"} | options)
    )
    train(adapted)
    return adapted


def stored(path):
    with Checkpoint.open(path) as checkpoint:
        return {n: np.array(f.array(n)) for n, (f, _) in checkpoint.tensors.items()}


def same_tensors(model, path):
    values = {name: v.clone() for name, v in model.state_dict().items()}
    for name, expected in stored(path).items():
        got = values[name]
        got = got.view(torch.int16).numpy() if got.dtype == torch.bfloat16 else got.numpy()
        assert got.tobytes() == expected.tobytes(), name


def quantised(bits):
    """Return a model of one linear layer that bitsandbytes keeps in 4 or 8 bits."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    source = nn.Linear(64, 64)
    if bits == 4:
        layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
        layer.weight = bnb.nn.Params4bit(
            source.weight.data.clone(), requires_grad=False, quant_type="nf4"
        )
    else:
        layer = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(source.weight.data.clone(), requires_grad=False)
    model = nn.Sequential()
    model.add_module("lin", layer.to("cpu"))
    return model
