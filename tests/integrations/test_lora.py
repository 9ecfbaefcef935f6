"""LoRA that PEFT trained: the weights of PEFT's own merge, through files and in memory."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import AdapterError
from nola_edge.torch.sharding import Shard
from nola_edge.torch.stored_factors import StoredFactors
from tests.integrations.test_transformers import load
from tests.lora_folders import write_lora

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama():
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False
    )
    return transformers.LlamaForCausalLM(config)


def qwen():
    """With biases in its attention."""
    config = transformers.Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2)
    return transformers.Qwen2ForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(**SMALL, intermediate_size=48)
    return transformers.BertForSequenceClassification(config)


def t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config)


PATTERNS = {
    "use_rslora": True,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 6},
    "alpha_pattern": {r".*\.1\..*v_proj": 3, "model.layers.0.self_attn.q_proj": 5},
}
GPT2 = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
CASES = {
    "llama": (llama, {"target_modules": "all-linear"}),
    "patterns": (llama, PATTERNS),
    "gpt2": (gpt2, GPT2),
    "bert": (bert, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "biases": (bert, {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"}),
    "lora_only": (qwen, {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "added biases": (qwen, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "t5": (t5, {"target_modules": ["q", "wo"]}),
    "DoRA": (llama, {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "DoRA, Conv1D": (gpt2, {**GPT2, "use_dora": True}),
    "DoRA, embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
}


def train(model, folder, **options):
    """Save a LoRA whose numbers are as after training, and return PEFT's model."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=7, **options))
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    return wrapped


def peft_and_ours(tmp_path, case, dtype):
    torch.manual_seed(1)
    make, options = CASES[case]
    model = make().to(dtype)
    model.save_pretrained(tmp_path / "base")
    wrapped = train(model, tmp_path / "lora", **options)
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "lora", tmp_path / "merged")
    assert ne.verify_checkpoint(tmp_path / "merged", tmp_path / "base", tmp_path / "lora").identical
    wrapped.merge_and_unload().save_pretrained(tmp_path / "peft")
    return (load_file(tmp_path / place / "model.safetensors") for place in ("peft", "merged"))


@pytest.mark.parametrize("case", CASES)
def test_float32_is_that_of_peft(tmp_path, case):
    """Within a unit in the last place of the largest term for each rank: their sums round too."""
    theirs, ours = peft_and_ours(tmp_path, case, torch.float32)
    assert theirs.keys() == ours.keys()
    for name, wanted in theirs.items():
        bound = 6 * torch.finfo(torch.float32).eps * max(1e-9, float(wanted.abs().max()))
        assert float((ours[name] - wanted).abs().max()) <= bound, name


@pytest.mark.parametrize("case", [case for case in CASES if case != "embedding"])
def test_bfloat16_is_that_of_peft(tmp_path, case):
    theirs, ours = peft_and_ours(tmp_path, case, torch.bfloat16)
    assert {n: t.dtype for n, t in theirs.items()} == {n: t.dtype for n, t in ours.items()}
    equal = sum(int((ours[name] == theirs[name]).sum()) for name in theirs)
    assert equal >= 0.9999 * sum(t.numel() for t in theirs.values()) - 1


def test_a_bfloat16_embedding_is_rounded_once(tmp_path):
    """PEFT rounds what it adds to an embedding before it adds it; nola-edge does not."""
    theirs, ours = peft_and_ours(tmp_path, "embedding", torch.bfloat16)
    name = "model.embed_tokens.weight"
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    base = load_file(tmp_path / "base" / "model.safetensors")[name]
    wanted = base.double() + (b.double() @ a.double()).T * 7 / 4
    one, two = ((m[name].double() - wanted).abs().sum() for m in (ours, theirs))
    assert one < two
    assert (ours[name] == wanted.to(torch.bfloat16)).float().mean() > 0.999


@pytest.mark.parametrize("make", [llama, gpt2])
def test_vera_is_that_of_peft(tmp_path, make):
    torch.manual_seed(3)
    model = make()
    model.save_pretrained(tmp_path / "base")
    transposed = make is gpt2
    config = peft.VeraConfig(
        r=8, target_modules=["c_attn" if transposed else "q_proj"], fan_in_fan_out=transposed
    )
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "vera_lambda" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path / "vera")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "vera", tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    for name, wanted in wrapped.merge_and_unload().state_dict().items():
        if name in ours:
            torch.testing.assert_close(ours[name], wanted, rtol=1e-6, atol=1e-7)
    resident = load(tmp_path / "base", cls=type(model))
    nt.merge_(resident, tmp_path / "vera")
    assert holds(resident, ours)


def mixed(tmp_path):
    """Return a base, and a LoRA and a NOLA adapter that meet in one weight."""
    torch.manual_seed(2)
    llama().save_pretrained(tmp_path / "base")
    train(load(tmp_path / "base"), tmp_path / "lora", **CASES["embedding"][1])
    shapes = {f"model.layers.{i}.self_attn.q_proj": (32, 32) for i in range(2)}
    trained_adapter(shapes, r=3, num_basis=20, base=tmp_path / "base").save(tmp_path / "nola")
    adapters = [tmp_path / "nola", (tmp_path / "lora", -0.7)]
    ne.merge_checkpoint(tmp_path / "base", adapters, tmp_path / "merged")
    return tmp_path / "base", adapters, load_file(tmp_path / "merged" / "model.safetensors")


def holds(model, tensors):
    state = model.state_dict()
    return all(torch.equal(state[name], values) for name, values in tensors.items())


def test_models_in_memory_get_the_same_bits(tmp_path):
    base, adapters, wanted = mixed(tmp_path)
    model = load(base)
    assert not holds(model, wanted)
    nt.merge_(model, adapters)
    assert holds(model, wanted)
    assert holds(nt.load_merged(transformers.LlamaForCausalLM, base, adapters), wanted)
    resident = load(base)
    with nt.AdapterSwitch(resident, base) as switch:
        switch.add("nola", tmp_path / "nola")
        switch.add("lora", tmp_path / "lora")
        switch.use([("nola", 1), ("lora", -0.7)])
        assert holds(resident, wanted)
        switch.use("lora")
        switch.use(None)
        assert holds(resident, load_file(base / "model.safetensors"))


def test_half_precision_models_in_memory(tmp_path):
    """Here the update is bounded first, from the factors: float16 has little room."""
    base, adapters, _ = mixed(tmp_path)
    model, one = (load(base, dtype=torch.float16) for _ in range(2))
    nt.merge_(model, adapters)
    model.save_pretrained(tmp_path / "half")
    one.save_pretrained(tmp_path / "half-base")
    with ne.open_merged(tmp_path / "half-base", adapters, check_base=False) as wanted:
        found = load_file(tmp_path / "half" / "model.safetensors")
        assert all(np.array_equal(found[name].numpy(), wanted[name]) for name in wanted)


def test_a_process_reads_its_part_of_the_factors(tmp_path):
    """As a model that is split over processes asks for it."""
    adapter = ne.load_adapter(write_lora(tmp_path / "lora"))
    whole = StoredFactors(adapter, "layers.0.q", 40, 24)
    part = whole.on(Shard(rows=(5, 9), cols=(32, 40)))
    device = torch.empty(0)
    assert torch.equal(part.a(device), whole.a(device)[:, 32:40])
    assert torch.equal(part.b(device), whole.b(device)[5:9])
    product = whole.b(device) @ whole.a(device)
    assert float(product.abs().max()) <= whole.largest_product(device, device)


def test_biases_are_refused_for_a_model_in_memory(tmp_path):
    train(qwen(), tmp_path / "lora", **CASES["added biases"][1])
    model = qwen()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(AdapterError, match="changes of biases"):
        nt.merge_(model, tmp_path / "lora")
    assert holds(model, before)


def test_dora_is_refused_for_a_model_in_memory(tmp_path):
    model = llama()
    train(llama(), tmp_path / "lora", **CASES["DoRA"][1])
    with pytest.raises(AdapterError, match="is DoRA, which scales merged weights"):
        nt.merge_(model, tmp_path / "lora")


def test_peft_loads_what_is_exported_of_both_methods(tmp_path):
    base, adapters, wanted = mixed(tmp_path)
    ne.export_lora(adapters, base, tmp_path / "both")
    ne.merge_checkpoint(base, tmp_path / "both", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in wanted.items())
    theirs = peft.PeftModel.from_pretrained(load(base), tmp_path / "both").merge_and_unload()
    for name, values in theirs.state_dict().items():
        torch.testing.assert_close(values, wanted[name], rtol=1e-6, atol=1e-7)
