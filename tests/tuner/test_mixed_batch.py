"""Each sample of a batch with its own adapter, in forward and in generate."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import get_peft_model

import nola_edge.torch as nt
from nola_edge.peft import NolaConfig
from tests.tuner.models import IDS, SMALL, gpt2, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
NAMES = ["second", "__base__", "first", "second", "first"]
ROWS = IDS.reshape(-1)[:5, None] + torch.arange(8)


def two(base, first=(), second=(), **options):
    """Put two random adapters into a model."""
    torch.manual_seed(8)
    options = {**SMALL, "target_modules": "all-linear", "init_weights": False, **options}
    model = get_peft_model(base, NolaConfig(**{**options, **dict(first)}), "first")
    model.add_adapter("second", NolaConfig(**{**options, "seed": 5, **dict(second)}))
    return model.eval()


def apart(model, run):
    """Return what `run` gives for the whole batch with each adapter, and without."""
    found = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        found[name] = run()
    with model.disable_adapter():
        found["__base__"] = run()
    model.set_adapter("first")
    return found


def check_forward(model, dtype=torch.float32):
    with torch.no_grad():
        expected = apart(model, lambda: model(input_ids=ROWS).logits)
        mixed = model(input_ids=ROWS, adapter_names=NAMES).logits
        assert torch.equal(model(input_ids=ROWS).logits, expected["first"])
    assert mixed.dtype is dtype
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.1, "atol": 0.1}
    )
    for i, name in enumerate(NAMES):
        torch.testing.assert_close(mixed[i], expected[name][i], **tolerance)
    assert not torch.allclose(expected["first"], expected["second"], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward(make, dtype):
    check_forward(two(make(dtype)), dtype)


def test_adapters_of_different_layers_kinds_and_saved_modules():
    second = {"target_modules": ["down_proj", "v_proj"], "basis": "uniform", "coefficient_bits": 4}
    model = two(llama(), first={"target_modules": ["q_proj", "v_proj"]}, second=second)
    check_forward(model)
    check_forward(two(llama(), modules_to_save=["lm_head"], target_modules=["v_proj"]))


def test_with_factors_expanded_together():
    model = two(llama())
    nt.expand_together(model)
    check_forward(model)


def test_gradients_reach_each_sample_s_adapter():
    model = two(llama())
    for name, values in model.named_parameters():
        values.requires_grad_("nola_" in name)
    one = [i for i, name in enumerate(NAMES) if name == "first"]
    model(input_ids=ROWS, adapter_names=NAMES).logits[one].sum().backward()
    mixed = {n: p.grad.clone() for n, p in model.named_parameters() if n.endswith("first")}
    for name, values in model.named_parameters():
        assert not name.endswith("second") or values.grad is None or not values.grad.any()
    model.zero_grad()
    model.set_adapter("first")
    model(input_ids=ROWS[one]).logits.sum().backward()
    for name, gradient in mixed.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4)


def bart():
    transformers.set_seed(0)
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, bos_token_id=0,
        eos_token_id=2, pad_token_id=1, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


@pytest.mark.parametrize("make", [llama, bart])
@pytest.mark.parametrize("form", ["keywords", "configuration", "the model's", "both"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generate(make, form, options):
    model = two(make(), target_modules=["q_proj", "v_proj", "fc1", "up_proj"])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    if form == "the model's":
        model.generation_config.update(**options, pad_token_id=0)
        options = {}
    elif form == "both":  # what the call does not say, the model's says
        model.generation_config.num_return_sequences = options.pop("num_return_sequences", 1)
        model.generation_config.num_beams = 4
        options.setdefault("num_beams", 1)
    if form in ("configuration", "both"):
        options = {"generation_config": transformers.GenerationConfig(pad_token_id=0, **options)}
    call = {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS), **options}
    expected = apart(model, lambda: by_sample(model.generate(**call)))
    mixed = by_sample(model.generate(**call, adapter_names=NAMES))
    for i, name in enumerate(NAMES):
        assert torch.equal(mixed[i], expected[name][i]), name
    assert len({tuple(v.flatten().tolist()) for v in expected.values()}) == 3


def by_sample(sequences):
    """Return (samples, sequences of each, tokens)."""
    return sequences.reshape(len(ROWS), -1, sequences.shape[1])


@pytest.mark.parametrize("make", [llama, bart])
def test_forward_repeats_nothing_whatever_generation_would(make):
    model = two(make(), target_modules=["q_proj", "v_proj", "fc1", "up_proj"])
    expected = model(input_ids=ROWS, adapter_names=NAMES).logits
    model.generation_config.num_beams = 3
    assert torch.equal(model(input_ids=ROWS, adapter_names=NAMES).logits, expected)
    with pytest.raises(ValueError, match=r"samples|adapter_names"):
        model(input_ids=ROWS[:4], adapter_names=NAMES)


def test_the_base_model_takes_no_names():
    """It would ignore them, even those of no adapter."""
    model = two(llama())
    assert torch.equal(
        model.base_model(input_ids=ROWS, adapter_names=None).logits, model(input_ids=ROWS).logits
    )
    for names in (NAMES, ["nope"] * 5):
        with pytest.raises(ValueError, match="to the PEFT model"):
            model.base_model(input_ids=ROWS, adapter_names=names)


def test_sampled_sequences():
    """Each of a sample's sequences comes from its adapter: at temperature 0, the greedy one."""
    model = two(llama())
    call = {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS)}
    call |= {"max_new_tokens": 6, "min_new_tokens": 6}
    greedy = by_sample(model.generate(**call, do_sample=False, adapter_names=NAMES))
    sampled = model.generate(
        **call, do_sample=True, top_k=1, num_return_sequences=3, adapter_names=NAMES
    )
    assert torch.equal(by_sample(sampled), greedy.expand(-1, 3, -1))


@pytest.mark.parametrize("names", ["first", ["first", 3], {"first": 0}])
def test_what_is_no_list_of_names(names):
    with pytest.raises(TypeError, match="`adapter_names`"):
        two(llama())(input_ids=ROWS[:2], adapter_names=names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first", "german", "french"], r"non-existing adapter\(s\): french, german"),
        (["first", "second"], "Length of `adapter_names`"),
        ([], "Length of `adapter_names`"),
    ],
)
def test_other_names_or_another_number(names, message):
    model = two(llama())
    call = {"input_ids": ROWS[:3], "adapter_names": names}
    with pytest.raises(ValueError, match=message):
        model(**call)
    with pytest.raises(ValueError, match=message):
        model.generate(**call, max_new_tokens=1)
    check_forward(model)  # nothing stays behind


def test_training_and_merged_layers():
    model = two(llama()).train()
    with pytest.raises(ValueError, match="training mode"):
        model(input_ids=ROWS, adapter_names=NAMES)
    model.eval().merge_adapter(["second"])
    with pytest.raises(ValueError, match="merged adapters"):
        model(input_ids=ROWS, adapter_names=NAMES)
    model.unmerge_adapter()
    check_forward(model)


def test_disabled_adapters_take_precedence():
    model = two(llama())
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=ROWS).logits
        assert torch.equal(model(input_ids=ROWS, adapter_names=NAMES).logits, expected)
