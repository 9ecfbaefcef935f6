"""The tuner as people use it: their PEFT script, with the configuration class changed."""

from __future__ import annotations

import math
import os

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import GPT2LMHeadModel, LlamaForCausalLM

import nola_edge as ne
from nola_edge.peft import NolaConfig, NolaLinearLayer
from tests.tuner.models import (
    IDS,
    SMALL,
    gpt2,
    llama,
    logits,
    quantised,
    same_tensors,
    stored,
    train,
    trained,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_merges_agree_bit_for_bit(make, dtype, tmp_path):
    """merge_and_unload and nola-edge merge, in every dtype, for Linear and Conv1D."""
    base = make(dtype)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        base, NolaConfig(**SMALL, target_modules="all-linear", init_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert ne.verify_checkpoint(
        tmp_path / "merged", tmp_path / "base", tmp_path / "adapter"
    ).identical
    merged = adapted.merge_and_unload()
    same_tensors(merged, tmp_path / "merged")


def test_peft_and_trainer_script(tmp_path):
    """The README's script: train with Trainer, save, reload, merge."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, NolaConfig(task_type="CAUSAL_LM", lora_alpha=8, **SMALL))
    data = [{"input_ids": row, "labels": row} for row in IDS] * 4
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=2,
        learning_rate=2e-2, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")

    expected = logits(model)
    assert not torch.equal(expected, logits(llama()))
    reloaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.equal(logits(reloaded), expected)
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    same_tensors(reloaded.merge_and_unload(), tmp_path / "merged")
    assert os.path.getsize(tmp_path / "adapter" / "adapter_model.safetensors") < 4000


def test_a_fresh_adapter_is_the_identity_and_only_coefficients_train():
    base = llama()
    expected = logits(base)
    adapted = get_peft_model(base, NolaConfig(**SMALL, target_modules=["q_proj", "v_proj"]))
    assert torch.equal(logits(adapted), expected)
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    assert all(n.endswith(("nola_alpha.default", "nola_beta.default")) for n in trainable)
    assert adapted.get_nb_trainable_parameters()[0] == 4 * (24 + 20)


def test_default_targets_of_a_known_architecture():
    adapted = get_peft_model(llama(), NolaConfig(**SMALL))
    assert set(adapted.peft_config["default"].target_modules) == {"q_proj", "v_proj"}


def test_several_adapters_with_different_seeds(tmp_path):
    model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules=["q_proj"]))
    model.add_adapter(
        "other", NolaConfig(**{**SMALL, "seed": 5}, target_modules=["q_proj", "o_proj"])
    )
    base = logits(llama())
    train(model)
    first = logits(model)
    model.set_adapter("other")
    train(model)
    second = logits(model)
    assert not torch.equal(first, second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), tmp_path)
    again.load_adapter(tmp_path / "other", adapter_name="other")
    assert torch.equal(logits(again), first)
    again.set_adapter("other")
    assert torch.equal(logits(again), second)
    again.delete_adapter("other")
    again.set_adapter("default")
    assert torch.equal(logits(again), first)
    assert torch.equal(logits(again.unload()), base)


def test_two_merged_at_once_are_rounded_once(tmp_path):
    base = llama(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    options = {"target_modules": "all-linear", "init_weights": False}
    model = get_peft_model(base, NolaConfig(**SMALL, **options))
    model.add_adapter("other", NolaConfig(**{**SMALL, "seed": 5}, **options))
    saved = tmp_path / "adapters"
    model.save_pretrained(saved)
    model.base_model.set_adapter(["default", "other"])
    ne.merge_checkpoint(tmp_path / "base", [saved, saved / "other"], tmp_path / "merged")
    same_tensors(model.merge_and_unload(), tmp_path / "merged")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_restores_every_bit(dtype):
    model = get_peft_model(
        llama(dtype), NolaConfig(**SMALL, target_modules="all-linear", init_weights=False)
    )
    model.add_adapter("more", NolaConfig(**SMALL, target_modules="all-linear", init_weights=False))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for _ in range(3):
        model.merge_adapter(["default"])
        model.merge_adapter(["more"])
        changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert len(changed) == 14
        model.unmerge_adapter()
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_merged_forward_equals_unmerged_forward():
    model = trained(llama())
    apart = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), apart, rtol=1e-4, atol=1e-5)


def test_modules_to_save_and_bias_reach_the_merged_files(tmp_path):
    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        base,
        NolaConfig(**SMALL, target_modules=["c_attn"], bias="nola_only", modules_to_save=["ln_f"]),
    )
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected = logits(model)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(again.transformer.ln_f.weight, gpt2().transformer.ln_f.weight)


def test_every_way_to_load(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = trained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    low = PeftModel.from_pretrained(llama(), tmp_path / "adapter", low_cpu_mem_usage=True)
    assert torch.equal(logits(low), expected)
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(auto), expected)
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    plain.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(plain), expected)
    injected = peft.inject_adapter_in_model(
        NolaConfig.from_pretrained(tmp_path / "adapter"), llama()
    )
    tensors = peft.utils.load_peft_weights(tmp_path / "adapter")
    peft.set_peft_model_state_dict(injected, tensors)
    assert torch.equal(logits(injected), expected)


def test_frozen_coefficients_are_expanded_once(monkeypatch):
    from nola_edge.torch.factors import Factors

    model = trained(llama())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    calls = []
    original = Factors.a
    monkeypatch.setattr(Factors, "a", lambda self, c: calls.append(1) or original(self, c))
    first = logits(model)
    count = len(calls)
    assert torch.equal(logits(model), first)
    assert len(calls) == count
    with torch.no_grad():  # behind the version counter's back
        next(p for n, p in model.named_parameters() if "nola_beta" in n).data[0] += 1
    assert not torch.equal(logits(model), first)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_quantisation_aware_training_saves_what_it_trained(bits, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = trained(llama(), coefficient_bits=bits, task_type="CAUSAL_LM")
    expected = logits(model)
    assert not torch.equal(expected, logits(llama()))
    model.save_pretrained(tmp_path / "adapter")
    adapter = ne.Adapter.load(tmp_path / "adapter")
    assert adapter.config.coefficient_bits == bits
    again = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.equal(logits(again), expected)
    again.save_pretrained(tmp_path / "again")
    file = "adapter_model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    same_tensors(model.merge_and_unload(), tmp_path / "merged")


@pytest.mark.parametrize("start", ["unit", "unit-frozen", "random"])
def test_starts(start):
    base = logits(llama())
    model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules=["q_proj"], start=start))
    assert torch.equal(logits(model), base)
    name = "base_model.model.model.layers.0.self_attn.q_proj.nola_alpha.default"
    before = model.get_parameter(name).detach().clone()
    if start != "random":
        assert before[0] == pytest.approx(math.sqrt(24 / (3 * 32)))
    train(model)
    after = model.get_parameter(name).detach()
    assert not torch.equal(after[1:], before[1:])
    # Without a gradient AdamW still decays.
    assert (abs(after[0] / before[0] - 1) < 0.01) == (start == "unit-frozen")


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_layers(bits):
    model = quantised(bits)
    x = torch.randn(5, 64)
    plain = model(x).detach()
    adapted = get_peft_model(
        model, NolaConfig(**SMALL, target_modules=["lin"], init_weights=False, lora_alpha=1)
    )
    adapted(x).square().sum().backward()
    assert adapted.base_model.model.lin.nola_alpha["default"].grad.abs().sum() > 0
    with torch.no_grad():
        apart = adapted(x)
        assert (apart - plain).abs().max() > 0.1
        adapted.merge_adapter()
        merged = adapted(x)
        assert (merged - apart).abs().mean() < 0.5 * (apart - plain).abs().mean()
        adapted.unmerge_adapter()
        assert torch.equal(adapted(x), apart)
        # Merged a second time, upon the first: what was kept may not be used up.
        adapted.add_adapter("b", NolaConfig(**{**SMALL, "seed": 4}, target_modules=["lin"]))
        for names in (["default"], ["b"]):
            adapted.base_model.merge_adapter(names)
        adapted.unmerge_adapter()
        assert torch.equal(adapted(x), apart)


def test_layers_are_stateless_copies():
    import copy
    import pickle

    model = trained(llama())
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert isinstance(layer, NolaLinearLayer)
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


def test_import_registers_once():
    import importlib

    import nola_edge.peft

    importlib.reload(nola_edge.peft)
    assert peft.PeftType("NOLA") is peft.PeftType.NOLA
    assert list(peft.PeftType).count(peft.PeftType.NOLA) == 1


def test_compiled_model_trains_alike():
    torch._dynamo.reset()
    eager, compiled = (
        get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear")) for _ in "ab"
    )
    expected = train(eager, steps=3)
    got = train(torch.compile(compiled, backend="aot_eager"), steps=3)
    assert got == pytest.approx(expected, rel=1e-4)


def test_an_adapted_output_layer_merges(tmp_path):
    """PEFT saves the frozen weight of an adapted lm_head along; it is no change."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    adapted = trained(base, target_modules=["lm_head", "q_proj"])
    adapted.save_pretrained(tmp_path / "adapter")
    names = stored(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.lm_head.base_layer.weight" in names
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    same_tensors(adapted.merge_and_unload(), tmp_path / "merged")


def test_trainer_resumes(tmp_path):
    """A run that is cut and resumed ends where an uncut one ends."""
    data = [{"input_ids": row, "labels": row} for row in IDS]

    def run(folder, steps, resume=None):
        transformers.set_seed(0)
        model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear"))
        arguments = transformers.TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2,
            save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        return logits(model)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 4, str(tmp_path / "cut" / "checkpoint-2"))
    torch.testing.assert_close(resumed, whole)


def test_biases_of_saved_modules_are_saved_once(tmp_path):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        vocab_size=64,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    options = {**SMALL, "target_modules": ["query", "value"], "bias": "all"}
    adapted = get_peft_model(base, NolaConfig(**options, modules_to_save=["classifier"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert stored(tmp_path / "merged").keys() == stored(tmp_path / "base").keys()
    same_tensors(adapted.merge_and_unload(), tmp_path / "merged")


def test_gradient_checkpointing_and_half_precision_coefficients():
    expected = train(get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear")))
    checkpointed = get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear"))
    checkpointed.gradient_checkpointing_enable()
    checkpointed.enable_input_require_grads()
    assert train(checkpointed) == pytest.approx(expected, rel=1e-4)
    half = get_peft_model(
        llama(torch.bfloat16), NolaConfig(**SMALL, target_modules="all-linear"),
        autocast_adapter_dtype=False,
    )  # fmt: skip
    assert half.get_parameter(
        "base_model.model.model.layers.0.mlp.up_proj.nola_beta.default"
    ).dtype is torch.bfloat16  # fmt: skip
    losses = train(half)
    assert losses[-1] < losses[0]


def test_which_layers():
    options = {**SMALL, "target_modules": ["q_proj", "v_proj"]}
    some = get_peft_model(llama(), NolaConfig(**options, layers_to_transform=[1]))
    adapted = {n for n, m in some.named_modules() if isinstance(m, NolaLinearLayer)}
    assert len(adapted) == 2
    assert all("layers.1." in name for name in adapted)
    without = get_peft_model(llama(), NolaConfig(**options, exclude_modules=["v_proj"]))
    adapted = {n for n, m in without.named_modules() if isinstance(m, NolaLinearLayer)}
    assert len(adapted) == 2
    assert all(name.endswith("q_proj") for name in adapted)
