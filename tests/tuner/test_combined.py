"""A weighted sum of adapters: exact in use and in merged weights, and not to be saved."""

from __future__ import annotations

import subprocess

import pytest
import torch
import transformers
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from nola_edge.peft import NolaConfig
from tests.tuner.models import IDS, SMALL, llama, logits, same_tensors, train

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves

OPTIONS = {
    "a": {**SMALL, "target_modules": ["q_proj", "up_proj"]},
    "b": {
        "r": 2, "num_basis_a": 12, "num_basis_b": 9, "seed": 5, "coefficient_bits": 8,
        "target_modules": ["q_proj", "o_proj"], "basis": "uniform", "use_rslora": True,
    },
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """A model with two trained adapters, of different kinds, saved beside their base."""
    llama(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = get_peft_model(base, NolaConfig(**OPTIONS["a"]), "a")
    model.add_adapter("b", NolaConfig(**OPTIONS["b"]))
    for name in OPTIONS:
        model.set_adapter(name)
        train(model, lr=5e-2)
    model.save_pretrained(tmp_path)
    return model


def test_it_merges_to_the_bits_of_the_command_line(model, tmp_path):
    model.add_weighted_adapter(["a", "b"], [0.7, -0.3], "mixed", combination_type="cat")
    model.set_adapter("mixed")
    merged = model.merge_and_unload()
    command = ["nola-edge", "merge", "base", "a=0.7", "b=-0.3", "-o", "merged"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    same_tensors(merged, tmp_path / "merged")


def test_it_does_what_the_merged_model_does(model):
    model = model.float()
    single = {}
    for name in OPTIONS:
        model.set_adapter(name)
        single[name] = logits(model)
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    model.add_weighted_adapter(["mixed", "a"], [0.5, 1.0], "nested")
    model.add_weighted_adapter(["b"], [1.0], "alone")
    seen = {}
    for name in ("mixed", "nested", "alone"):
        model.set_adapter(name)
        seen[name] = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), seen[name], rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
    assert torch.equal(seen["alone"], single["b"])
    with torch.no_grad():
        batch = model(IDS, adapter_names=["a", "mixed"]).logits
    expected = torch.stack([single["a"][0], seen["mixed"][1]])
    torch.testing.assert_close(batch, expected, rtol=1e-4, atol=1e-4)


def test_it_stays_without_its_parts_and_goes_alone(model):
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    model.set_adapter("mixed")
    before = logits(model)
    model.delete_adapter("a")
    model.delete_adapter("b")
    assert torch.equal(logits(model), before)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and "nola" in n]
    model.delete_adapter("mixed")
    assert not [n for n, _ in model.named_parameters() if "nola_alpha" in n]


def test_it_is_not_saved(model, tmp_path):
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    with pytest.raises(ValueError, match=r"`nola-edge merge BASE a=0.7 b=0.3 -o merged`"):
        model.save_pretrained(tmp_path / "saved", selected_adapters=["a", "mixed"])
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match="weighted sum"):
        get_peft_model_state_dict(model, adapter_name="mixed")
    with pytest.warns(UserWarning, match=r"^Not saved: 'mixed'\.") as caught:
        model.save_pretrained(tmp_path / "saved")
    assert len(caught) == 1
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["README.md", "a", "b"]


def test_a_sum_of_sums_is_said_in_adapters_that_can_be_saved(model, tmp_path):
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    model.add_weighted_adapter(["mixed", "a"], [0.5, 1.0], "nested")
    for name in OPTIONS:
        model.delete_adapter(name)
    with pytest.raises(ValueError, match="'mixed' is a weighted sum"):
        model.save_pretrained(tmp_path / "saved")  # which would be empty
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*`nola-edge merge BASE a=1.35 b=0.15 "):
        model.save_pretrained(tmp_path / "saved", selected_adapters=["nested"])
    assert not (tmp_path / "saved").exists()


def test_nothing_makes_it_trainable(model):
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    for make_trainable in (
        lambda: model.set_requires_grad("mixed"),
        lambda: model.base_model.set_requires_grad(["mixed", "a"]),
        lambda: model.set_adapter("mixed"),
        lambda: model.add_adapter("c", NolaConfig(**OPTIONS["a"])),
    ):
        make_trainable()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and "mixed" in n]


def test_the_trainer_saves_beside_a_sum(model, tmp_path):
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")
    model.set_adapter("a")
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=2, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    saved = tmp_path / "run" / "checkpoint-2"
    assert sorted(path.parent.name for path in saved.glob("*/adapter_config.json")) == ["a", "b"]


@pytest.mark.parametrize("name", ["c.d", "", "keys"])
def test_a_name_that_pytorch_does_not_take(model, name):
    with pytest.raises(ValueError, match=f"^'{name}' cannot be the name of an adapter"):
        model.add_weighted_adapter(["a"], [1.0], name)
    assert set(model.peft_config) == {"a", "b"}


@pytest.mark.parametrize(
    ("adapters", "weights", "options", "message"),
    [
        (["a", "b"], [1, 1], {"combination_type": "svd"}, "'svd': NOLA adapters are added exactly"),
        (["a", "b"], [1, 1], {"combination_type": "linear"}, "'linear': NOLA"),
        (
            ["a", "b"], [1, 1], {"combination_type": "ties", "density": 0.5},
            "'ties': NOLA adapters are added exactly",
        ),
        (["a", "b"], [1, 1], {"density": 0.5}, "`density` is 0.5: NOLA adapters are added exactly"),
        (["a", "c"], [1, 1], {}, "'c' does not exist; there are a, b"),
        (["a", "b"], [1], {}, "2 adapters were given, but 1 weights"),
        ([], [], {}, "0 adapters"),
        (["a", "b"], [1, float("nan")], {}, "weight of adapter 'b' is nan"),
        (["a", "b"], [1, "0.3"], {}, "weight of adapter 'b' is '0.3', must be a number"),
        (["a"], [None], {}, "weight of adapter 'a' is None, must be a number"),
        (["a"], 0.7, {}, "`weights` is 0.7, must be a list"),
    ],
)  # fmt: skip
def test_refusals(model, adapters, weights, options, message):
    names = set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, "mixed", **options)
    with pytest.raises(ValueError, match="'a' already exists"):
        model.add_weighted_adapter(["a", "b"], [1, 1], "a")
    assert set(model.state_dict()) == names
    assert set(model.peft_config) == {"a", "b"}


def test_what_has_no_weighted_sum():
    model = get_peft_model(llama(), NolaConfig(**SMALL, modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="whole modules or biases"):
        model.add_weighted_adapter(["default"], [1.0], "mixed")
    assert not [name for name in model.state_dict() if "mixed" in name]
