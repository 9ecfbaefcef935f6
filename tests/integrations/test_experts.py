"""LoRA of stacks of experts that PEFT made for transformers' models, merged into their files."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import nola_edge as ne

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def qwen():
    config = transformers.Qwen3MoeConfig(
        **SMALL, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, head_dim=8
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4))


def gpt_oss():
    """With stacks that are (experts, in, out), in files too."""
    config = transformers.GptOssConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    )
    return transformers.GptOssForCausalLM(config)


def llama4():
    """As gpt_oss, but PEFT does not know that."""
    config = transformers.Llama4TextConfig(
        **SMALL, intermediate_size_mlp=48, num_local_experts=4, head_dim=8
    )
    return transformers.Llama4ForCausalLM(config)


CASES = {
    "gpt_oss": (gpt_oss, {"target_parameters": TARGETS, "target_modules": ["q_proj"]}),
    "llama4": (
        llama4,
        {
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "target_modules": ["q_proj"],
        },
    ),
    "qwen3_moe": (qwen, {"target_parameters": TARGETS, "target_modules": ["q_proj"]}),
    "mixtral": (mixtral, {"target_parameters": TARGETS, "target_modules": []}),
    "one stack": (qwen, {"target_parameters": TARGETS[1:], "target_modules": ["v_proj"]}),
    "router": (qwen, {"target_parameters": [*TARGETS, "mlp.gate.weight"], "target_modules": []}),
    "patterns": (
        mixtral,
        {
            "target_parameters": TARGETS,
            "target_modules": ["q_proj"],
            "use_rslora": True,
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {r"model\.layers\.1\.mlp\.experts\.gate_up_proj": 3},
        },
    ),
}


def trained(tmp_path, case, dtype=torch.float32):
    """Save a base and a LoRA for it, and return PEFT's model."""
    torch.manual_seed(4)
    make, options = CASES[case]
    model = make().to(dtype)
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, **options))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "lora")
    return wrapped


def files_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_float32_is_that_of_peft(tmp_path, case):
    wrapped = trained(tmp_path, case)
    adapter = ne.load_adapter(tmp_path / "lora", moe_layout="peft")
    ne.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    assert ne.verify_checkpoint(tmp_path / "merged", tmp_path / "base", adapter).identical
    wrapped.merge_and_unload().save_pretrained(tmp_path / "peft")
    base, ours, theirs = (files_of(tmp_path / d) for d in ("base", "merged", "peft"))
    assert theirs.keys() == ours.keys()
    changed = {n for n in base if not torch.equal(theirs[n], base[n])}
    assert any("experts" in name for name in changed)
    assert {n for n in base if not torch.equal(ours[n], base[n])} == changed
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-6, atol=1e-7)


def test_logits_are_those_of_the_unmerged_model(tmp_path):
    wrapped = trained(tmp_path, "mixtral")
    adapter = ne.load_adapter(tmp_path / "lora", moe_layout="peft")
    ne.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    merged = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, wrapped.eval()(tokens).logits)


def test_bfloat16_is_rounded_once(tmp_path):
    """PEFT rounds what it adds to a stack before it adds it; nola-edge does not."""
    wrapped = trained(tmp_path, "qwen3_moe", torch.bfloat16)
    adapter = ne.load_adapter(tmp_path / "lora", moe_layout="peft")
    ne.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "peft")
    base, ours, theirs = (files_of(tmp_path / d) for d in ("base", "merged", "peft"))
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (
        stored[f"base_model.model.model.layers.1.mlp.experts.lora_{x}.weight"].double()
        for x in "AB"
    )
    for expert in range(4):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        change = b[:, expert::4] @ a[3 * expert : 3 * expert + 3]
        wanted = base[name].double() + change * 7 / 3
        one, two = ((m[name].double() - wanted).abs().sum() for m in (ours, theirs))
        assert one < two
        assert (ours[name] == wanted.to(torch.bfloat16)).float().mean() > 0.999


def test_the_other_layout_is_a_permutation_of_columns(tmp_path):
    """As Unsloth has read them until September 2026; the same experts come out."""
    trained(tmp_path, "qwen3_moe")
    before = ne.load_adapter(tmp_path / "lora", moe_layout="peft")
    ne.merge_checkpoint(tmp_path / "base", before, tmp_path / "merged")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, b in tensors.items():
        if "experts" in name and "lora_B" in name:
            by_rank = b.reshape(len(b), 3, 4)
            tensors[name] = by_rank.transpose(1, 2).reshape(b.shape).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    after = ne.load_adapter(tmp_path / "lora", moe_layout="unsloth")
    assert ne.verify_checkpoint(tmp_path / "merged", tmp_path / "base", after).identical
