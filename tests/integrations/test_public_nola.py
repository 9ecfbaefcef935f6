"""Checkpoints of the public NOLA code become LoRA that adds what the public forward adds."""

from __future__ import annotations

import copy
import json

import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.adapters.public_nola.cpu_generator import CpuGenerator
from nola_edge.convert import convert_checkpoint
from nola_edge.transformers import NolaMergeConfig
from tests.integrations.public_models import (
    SEEDS,
    Added,
    FixedBasisLayer,
    SeededLinear,
    SeededPair,
    Vision,
    do_as_the_refusal_says,
    pair_tensors,
    seeded,
    vision_tensors,
    write_peft_folder,
)

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making

EPSILON = 2.0**-24
LLAMA = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 60, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}


def random(seed=1):
    return torch.Generator().manual_seed(seed)


def drawn(generator, size, bound, dtype="F32"):
    return np.concatenate(list(generator.uniform(size, bound, dtype)))


@given(
    seed=st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(SEEDS)),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
    bound=st.sampled_from([1.0, 0.25, 0.0123, 1 / 3]),
)
@settings(max_examples=60)
def test_the_cpu_generator_is_torchs(seed, sizes, bound):
    # Which of the two it is depends on the instruction set that torch chose.
    generators = [CpuGenerator(seed, fused=fused) for fused in (True, False)]
    with seeded(seed):
        wanted = [torch.empty(size).uniform_(-bound, bound).numpy() for size in sizes]
    results = [[drawn(g, size, bound) for size in sizes] for g in generators]
    same = [all(map(np.array_equal, result, wanted)) for result in results]
    assert all(same) if bound in (1.0, 0.25) else any(same)


def test_the_cpu_generator_over_many_words_and_skips():
    size = 2_000_003
    generator = CpuGenerator(SEEDS[0])
    with seeded(SEEDS[0]):
        torch.empty(70_000).uniform_()
        wanted = torch.empty(size).uniform_(-1, 1).numpy()
    generator.skip(70_000)
    assert np.array_equal(drawn(generator, size, 1.0), wanted)


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_the_cpu_generator_in_16_bits(name):
    """Of so many numbers hundreds round to the upper bound, which torch turns around."""
    kind = {"BF16": torch.bfloat16, "F16": torch.float16}[name]
    with seeded(3):
        wanted = torch.empty(300_000, dtype=kind).uniform_(-1, 1).float().numpy()
    assert np.array_equal(drawn(CpuGenerator(3), 300_000, 1.0, name), wanted)


def summation_error(coefficients, num_basis):
    """What float32 additions in any order can be off, for terms below c / sqrt(k)."""
    return (num_basis + 2) * EPSILON * float(coefficients.detach().abs().sum()) / num_basis**0.5


def added_by(folder, module):
    """Return what the LoRA in a folder adds to a module's weight (out, in), in double."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = f"base_model.model.{module}.lora_"
    a, b = (tensors[f"{prefix}{label}.weight"] for label in "AB")
    assert a.dtype == b.dtype == torch.float32
    rank = config["rank_pattern"].get(module, config["r"])
    assert a.shape[0] == b.shape[1] == rank
    scale = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank
    return scale * (b.double() @ a.double())


def assert_close(found, wanted):
    """Two float32 matrices multiplied in double: each off by a few units of the last place."""
    assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())
    assert float(wanted.norm()) > 0.1


@pytest.mark.parametrize("container", ["torch", "safetensors"])
def test_llama(tmp_path, container):
    torch.manual_seed(7)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    names = [
        name for name, _ in base.named_modules() if name.endswith(("q_proj", "v_proj", "down_proj"))
    ]
    pairs = {}
    for number, name in enumerate(names):
        layer = base.get_submodule(name)
        seeds = (SEEDS[0] - number, SEEDS[2] + number)
        options = {"rank": 4, "alpha": 4, "num_basis": 50, "seeds": seeds, "random": random(number)}
        pairs[name] = SeededPair(layer.in_features, layer.out_features, **options)
    source = tmp_path / "adapter_model"
    write_peft_folder(source, pairs, container)
    if container == "torch":
        assert do_as_the_refusal_says(source).samefile(source)
    report = convert_checkpoint(source, tmp_path / "lora", drawn_on="cpu")
    assert (report.modules, report.rank, report.coefficients) == (len(names), 4, len(names) * 100)
    for name, pair in pairs.items():
        assert_close(added_by(tmp_path / "lora", name), pair.delta())
    written = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for name, pair in pairs.items():
        for label, factor in (("A", pair.lora_A), ("B", pair.lora_B)):
            found = written[f"base_model.model.{name}.lora_{label}.weight"]
            limit = summation_error(factor.coefficients, 50)
            assert float((found - factor.matrix()).abs().max()) <= limit
    ids = torch.arange(24).reshape(2, 12)
    adapter = ne.load_adapter(source, drawn_on="cpu")
    merged = copy.deepcopy(base)
    nt.merge_(merged, adapter)
    base.save_pretrained(tmp_path / "base")
    at_load = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=NolaMergeConfig(adapter)
    )
    for name, weight in merged.named_parameters():
        assert torch.equal(at_load.get_parameter(name), weight)
    with torch.no_grad():
        plain = base(ids).logits
        by_merging = merged(ids).logits
        converted = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
        found = converted(ids).logits
        base = converted.unload()
        for name, pair in pairs.items():
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, Added(base.get_submodule(name), pair))
        wanted = base(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_merging, wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - plain).abs().max()) > 0.1


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("with_base", [False, True])
def test_gpt2(tmp_path, mlp, with_base):
    torch.manual_seed(8)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    tensors, blocks = {}, []
    for number in range(GPT2["n_layer"]):
        pairs = {}
        # All blocks are copies of one, so they share seeds.
        for place, (name, inputs, outputs) in enumerate(
            [("attn.nola_query", 32, 32), ("attn.nola_value", 32, 32)]
            + [("mlp.p1_nola", 32, 128), ("mlp.p2_nola", 128, 32)] * mlp
        ):
            seeds = (SEEDS[1] + place, SEEDS[3] + place)
            options = {"rank": 3, "alpha": 2.5, "num_basis": 40, "seeds": seeds}
            pair = SeededPair(inputs, outputs, random=random(10 * number + place), **options)
            pairs[name] = pair
            tensors.update(pair_tensors(f"module.transformer.h.{number}.{name}", pair))
        blocks.append(pairs)
    if with_base:
        tensors |= {f"module.{name}": value for name, value in base.state_dict().items()}
    torch.save({"model_state_dict": tensors}, tmp_path / "model.10.pt")
    report = convert_checkpoint(
        do_as_the_refusal_says(tmp_path / "model.10.pt"),
        tmp_path / "lora",
        drawn_on="cpu",
        lora_alpha=2.5,
    )
    assert (report.style, report.left_out > 0) == ("GPT-2", with_base)
    for number, pairs in enumerate(blocks):
        prefix = f"transformer.h.{number}."
        query, value = pairs["attn.nola_query"], pairs["attn.nola_value"]
        wanted = torch.cat([query.delta(), torch.zeros(32, 32), value.delta()])
        found = added_by(tmp_path / "lora", f"{prefix}attn.c_attn")
        assert_close(found, wanted)
        assert not found[32:64].any()
        if mlp:
            for source, target in (("mlp.p1_nola", "mlp.c_fc"), ("mlp.p2_nola", "mlp.c_proj")):
                assert_close(added_by(tmp_path / "lora", prefix + target), pairs[source].delta())
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        plain = base(ids).logits
        converted = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
        found = converted(ids).logits
        base = converted.unload()
        for block, pairs in zip(base.transformer.h, blocks, strict=True):
            query, value = pairs["attn.nola_query"], pairs["attn.nola_value"]
            block.attn.c_attn = Added(block.attn.c_attn, query, None, value)
            if mlp:
                block.mlp.c_fc = Added(block.mlp.c_fc, pairs["mlp.p1_nola"])
                block.mlp.c_proj = Added(block.mlp.c_proj, pairs["mlp.p2_nola"])
        wanted = base(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - plain).abs().max()) > 0.1


@pytest.mark.parametrize(("width", "hidden", "rank"), [(24, 96, 3), (24, 40, 1), (7, 28, 5)])
def test_vision_transformer(tmp_path, width, hidden, rank):
    """The one style that the public code saves as safetensors."""
    torch.manual_seed(9)
    base = Vision(width, hidden, classes=5, count=2).eval()
    options = {"rank": rank, "counts": (30, 20)}
    layers = [
        tuple(
            FixedBasisLayer(inputs, outputs, random=random(2 * number + place), **options)
            for place, (inputs, outputs) in enumerate([(width, hidden), (hidden, width)])
        )
        for number in range(2)
    ]
    trained = torch.randn(5, width, generator=random(5))
    save_file(vision_tensors(layers, trained), tmp_path / "vit.safetensors")
    asked = {} if hidden == 4 * width else {"hidden": hidden}
    report = convert_checkpoint(tmp_path / "vit.safetensors", tmp_path / "lora", **asked)
    assert (report.rank, report.checked, report.modules) == (rank, 2, 4)
    for number, pair in enumerate(layers):
        for name, layer in zip(("fc1", "fc2"), pair, strict=True):
            module = f"blocks.{number}.mlp.{name}"
            assert_close(added_by(tmp_path / "lora", module), layer.delta())
    x = torch.randn(6, width, generator=random(6))
    with torch.no_grad():
        head = load_file(tmp_path / "lora" / "head.safetensors")["head.weight"]
        assert torch.equal(head, trained)
        base.head.weight.copy_(head)
        converted = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
        found = converted(x)
        base = converted.unload()
        for block, (fc1, fc2) in zip(base.blocks, layers, strict=True):
            block.mlp.fc1 = Added(block.mlp.fc1, fc1)
            block.mlp.fc2 = Added(block.mlp.fc2, fc2)
        wanted = base(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_coefficients(tmp_path, dtype):
    """Each step is rounded as torch rounds it; its sum may round to a neighbour of ours."""
    pair = SeededPair(
        24, 40, rank=4, alpha=4, num_basis=50, seeds=SEEDS[:2], random=random(), dtype=dtype
    )
    write_peft_folder(tmp_path / "in", {"layer": pair})
    convert_checkpoint(tmp_path / "in", tmp_path / "lora", drawn_on="cpu")
    written = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    step = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for label, factor in (("A", pair.lora_A), ("B", pair.lora_B)):
        found = written[f"base_model.model.layer.lora_{label}.weight"]
        wanted = factor.matrix().float()
        kind = ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float16
        assert np.array_equal(found.numpy().astype(kind).astype(np.float32), found.numpy())
        part = wanted - factor.weight.float()  # the sum, whose own rounding may differ
        limit = 2 * step * (part.abs() + wanted.abs()) + step * 2**-6
        assert bool(((found - wanted).abs() <= limit).all())
        assert float((found == wanted).float().mean()) > 0.9


@given(
    num_basis=st.integers(1, 40),
    rank=st.integers(1, 6),
    inputs=st.integers(1, 50),
    outputs=st.integers(1, 50),
    seed=st.integers(0, 10**10 - 1),
)
@settings(max_examples=25)
def test_any_shape(tmp_path_factory, num_basis, rank, inputs, outputs, seed):
    folder = tmp_path_factory.mktemp("shape")
    options = {"rank": rank, "alpha": 4, "num_basis": num_basis, "seeds": (seed, seed + 1)}
    pair = SeededPair(inputs, outputs, random=random(), **options)
    write_peft_folder(folder / "in", {"layer": pair})
    convert_checkpoint(folder / "in", folder / "lora", drawn_on="cpu")
    found = added_by(folder / "lora", "layer")
    assert float((found - pair.delta()).norm()) <= 1e-5 * float(pair.delta().norm()) + 1e-6


def test_the_same_bytes_for_any_number_of_threads(tmp_path):
    pairs = {
        f"layers.{n}": SeededPair(
            64, 48, rank=8, alpha=4, num_basis=64, seeds=(n, n + 9), random=random(n)
        )
        for n in range(5)
    }
    write_peft_folder(tmp_path / "in", pairs)
    for count in (1, 3):
        convert_checkpoint(tmp_path / "in", tmp_path / f"{count}", gpu="t4", num_threads=count)
    one, three = (tmp_path / n / "adapter_model.safetensors" for n in "13")
    assert one.read_bytes() == three.read_bytes()


def test_a_recording_made_as_the_help_says(tmp_path, monkeypatch):
    pair = SeededPair(40, 24, rank=4, alpha=4, num_basis=30, seeds=SEEDS[:2], random=random())
    write_peft_folder(tmp_path / "in", {"layer": pair})
    report = convert_checkpoint(tmp_path / "in", tmp_path / "lora", drawn_on="cpu")
    assert report.checked == 0
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        exec(report.how_to_check, {})
    check = tmp_path / "first.safetensors"
    assert torch.equal(next(iter(load_file(check).values())), pair.lora_A.basis()[:, 0, 0])
    again = convert_checkpoint(tmp_path / "in", tmp_path / "two", drawn_on="cpu", check=check)
    assert again.checked == 1


def test_the_judge_draws_what_it_should():
    """The judge's basis is one draw of the whole tensor, seeded by all digits of the seed."""
    layer = SeededLinear(3, 2, 4, SEEDS[0], random())
    with seeded(SEEDS[0]):
        assert torch.equal(layer.basis(), torch.rand(4, 2, 3) * 2 - 1)
