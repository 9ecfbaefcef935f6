"""The constructor takes over what a LoRA script says, or refuses it in NOLA's own words."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, LoraRuntimeConfig, PeftConfig

from nola_edge.peft import NolaConfig


def default(option):
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default


LORA = {option.name: default(option) for option in dataclasses.fields(LoraConfig)}
OWN = {option.name for option in dataclasses.fields(NolaConfig)}
#: Of each option that NOLA lacks, a value that asks for it.
ASKED = {
    "alora_invocation_tokens": [1, 2],
    "init_lora_weights": "pissa",
    "megatron_core": "other.core",
    "qalora_group_size": 32,
    "runtime_config": LoraRuntimeConfig(ephemeral_gpu_offload=True),
    "target_parameters": ["experts.gate_up_proj"],
    "trainable_token_indices": [3],
}


def test_an_ordinary_lora_configuration(tmp_path):
    config = NolaConfig(
        r=8, lora_alpha=32, lora_dropout=0.05, bias="lora_only", use_rslora=True,
        init_lora_weights=True, target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    assert (config.nola_dropout, config.bias, config.init_weights) == (0.05, "nola_only", True)
    assert config.scaling == 32 / 8**0.5
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(saved) == OWN
    again = PeftConfig.from_pretrained(tmp_path)
    assert (again.nola_dropout, again.bias) == (0.05, "nola_only")


@given(st.sets(st.sampled_from(sorted(LORA))))
def test_the_defaults_of_lora_are_off(names):
    assert NolaConfig(**{name: LORA[name] for name in names}).nola_dropout == 0


@pytest.mark.parametrize("name", sorted({*LORA} - OWN - {"lora_dropout"}))
def test_an_option_that_nola_lacks(name):
    value = ASKED.get(name, {"some": "thing"} if not LORA[name] else not LORA[name])
    with pytest.raises(ValueError, match=rf"^`{name}` is .*: .*\. Leave it out\.$") as caught:
        NolaConfig(**{name: value})
    assert "Upgrade" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("k", "num_basis_a"), ("l", "num_basis_b"), ("num_basis", "num_basis_b"), ("rank", "r"),
        ("alpha", "lora_alpha"), ("dropout", "nola_dropout"), ("vera_dropout", "nola_dropout"),
        ("projection_prng_key", "seed"),
    ],
)  # fmt: skip
def test_a_name_of_another_method(name, own):
    with pytest.raises(ValueError, match=rf"^`{name}` is 7: NolaConfig calls it .*`{own}`\.$"):
        NolaConfig(**{name: 7})


def test_a_name_that_nobody_knows():
    with pytest.raises(ValueError, match=r"no such field; did you mean `num_basis_a`\?"):
        NolaConfig(num_base_a=7)
    with pytest.raises(ValueError, match=r"`qux` is 7: NolaConfig has no such field\."):
        NolaConfig(qux=7)


@pytest.mark.parametrize(
    ("name", "value", "own"),
    [
        ("init_nola_weights", False, "init_weights"), ("use_rslra", False, "use_rslora"),
        ("layers_to_transfrom", [], "layers_to_transform"), ("task_typ", None, "task_type"),
        ("bits", "", "coefficient_bits"),
    ],
)  # fmt: skip
def test_off_does_not_excuse_a_wrong_name(name, value, own):
    with pytest.raises(ValueError, match=rf"^`{name}` is .*`{own}`") as caught:
        NolaConfig(**{name: value})
    assert "\n" not in str(caught.value)
    assert NolaConfig(rank=None, d_initial=None).r == 16


@pytest.mark.parametrize("name", ["lora_dropout", "nola_dropout"])
@pytest.mark.parametrize("value", ["0.1", [0.1]])
def test_a_dropout_that_is_no_number(name, value):
    with pytest.raises(ValueError, match=r"_dropout` is .*must be a number in \[0, 1\)\.$"):
        NolaConfig(**{name: value})


def test_two_spellings_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"`lora_dropout` is 0.1 and `nola_dropout` 0.0"):
        NolaConfig(lora_dropout=0.1, nola_dropout=0.0)
    with pytest.raises(ValueError, match=r"`init_lora_weights` is True and `init_weights` False"):
        NolaConfig(init_lora_weights=True, init_weights=False)
    assert NolaConfig(lora_dropout=0.1, nola_dropout=0.1).nola_dropout == 0.1
    assert NolaConfig(init_lora_weights=False).init_weights is False
