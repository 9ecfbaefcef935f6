"""TinyLoRA that PEFT made: the weights of PEFT's own merge, and the numbers that torch draws."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

import nola_edge as ne
from nola_edge.adapters.torch_normal import standard_normal
from tests.integrations.lora_family import gpt2, llama

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making
CASES = {
    "a vector for each": (llama, {"target_modules": "all-linear"}),
    "shared": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"], "weight_tying": 0.6}),
    "of all": (llama, {"target_modules": ["q_proj", "v_proj"], "weight_tying": 1.0}),
    "few numbers": (llama, {"target_modules": ["q_proj", "k_proj"], "u": 1, "r": 1}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "o_proj"]}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Conv1D, embedding": (gpt2, {"target_modules": ["wte", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_peft(tmp_path, case):
    torch.manual_seed(5)
    make, options = CASES[case]
    model = make()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.TinyLoraConfig(**{"u": 13, **options}))
    for name, parameter in wrapped.named_parameters():
        if "tinylora_v" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path / "tiny")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "tiny", tmp_path / "merged")
    before, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("base", "merged"))
    theirs = wrapped.merge_and_unload().state_dict()
    modules = ne.load_adapter(tmp_path / "tiny").modules
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert len(changed) == len(modules)
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_a_base_of_16_bits(tmp_path, dtype):
    """PEFT rounds the random tensors to the base's dtype, and saves them in float32."""
    torch.manual_seed(6)
    llama().to(dtype).save_pretrained(tmp_path / "base")
    model = type(llama()).from_pretrained(tmp_path / "base", dtype=dtype)
    wrapped = peft.get_peft_model(model, peft.TinyLoraConfig(target_modules=["q_proj", "v_proj"]))
    for name, parameter in wrapped.named_parameters():
        if "tinylora_v" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path / "tiny")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "tiny", tmp_path / "merged")
    ours, theirs = load_file(tmp_path / "merged/model.safetensors"), wrapped.merge_and_unload()
    equal = [(ours[name] == values).float().mean() for name, values in theirs.state_dict().items()]
    assert min(equal) > 0.99


@pytest.mark.parametrize("size", [1, 2, 7, 15, 16, 17, 31, 32, 100, 1000])
def test_numbers_are_those_of_torch(size):
    for seed in (0, 42, 2**31, 2**32 + 5):
        generator = torch.Generator().manual_seed(seed)
        wanted = torch.normal(mean=0.0, std=1.0, size=(size,), generator=generator)
        np.testing.assert_allclose(standard_normal(seed, size), wanted, rtol=1e-4, atol=1e-5)
