"""The tuner as people use it: their PEFT script, with the configuration class changed."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.checkpoint import Checkpoint
from nola_edge.errors import NolaEdgeError
from nola_edge.peft import NolaConfig, NolaLinearLayer

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", 1.5), ("num_basis_a", 0), ("num_basis_b", -3), ("basis", "gauss"),
        ("seed", -1), ("seed", 2**63), ("lora_alpha", 0), ("lora_alpha", math.nan),
        ("nola_dropout", 1.0), ("start", "zero"), ("coefficient_bits", 5), ("bias", "lora_only"),
        ("nola_version", 2), ("module_aliases", ["x"]), ("use_dora", True),
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
    with pytest.raises(ValueError, match="rank_pattern"):
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


def test_an_adapter_for_other_shapes_is_refused(tmp_path):
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


def test_a_tied_embedding_that_was_trained_is_refused(tmp_path):
    config = llama().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    trained(base, modules_to_save=["embed_tokens"]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(NolaEdgeError, match="tied to the output layer"):
        ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
