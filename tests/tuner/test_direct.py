"""Adapters that transformers loads by itself do what they do in a PEFT model."""

from __future__ import annotations

import json
import os

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nola_edge.peft import NolaConfig, NolaLinearLayer
from tests.tuner.models import SMALL, llama, logits

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
OPTIONS = {**SMALL, "target_modules": ["q_proj", "down_proj"], "init_weights": False}


def base_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "base")


def save_adapter(folder, config=None, dtype=torch.float32, **options):
    """Save a base and an adapter; return what a PEFT model with them says."""
    llama(dtype).save_pretrained(folder / "base")
    torch.manual_seed(3)
    model = get_peft_model(base_of(folder), config or NolaConfig(**OPTIONS | options))
    model.save_pretrained(folder / "adapter")
    return logits(PeftModel.from_pretrained(base_of(folder), folder / "adapter"))


def by_hand(folder):
    model = base_of(folder)
    report = model.load_adapter(str(folder / "adapter"))
    assert not report.unexpected_keys
    assert not report.missing_keys
    return model


def from_folder(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "adapter")


def from_subfolder(folder):
    model = base_of(folder)
    model.load_adapter(str(folder), adapter_kwargs={"subfolder": "adapter"})
    return model


def from_memory(folder):
    model = base_of(folder)
    config = NolaConfig.from_pretrained(folder / "adapter")
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    model.load_adapter(peft_config=config, adapter_state_dict=tensors, adapter_name="other")
    return model


@pytest.mark.parametrize("load", [by_hand, from_folder, from_subfolder, from_memory])
@pytest.mark.parametrize("bits", [None, 8, 4, 3])
def test_coefficients_of_any_bits(load, bits, tmp_path):
    expected = save_adapter(tmp_path, coefficient_bits=bits)
    model = load(tmp_path)
    assert torch.equal(logits(model), expected)
    assert not [n for n, p in model.named_parameters() if "nola_" in n and p.requires_grad]


@pytest.mark.parametrize("bits", [None, 8])
def test_a_base_in_half_precision(bits, tmp_path):
    """The coefficients stay exact, and the whole modules and biases beside them come along."""
    whole = {"bias": "nola_only", "modules_to_save": ["lm_head"]}
    expected = save_adapter(tmp_path, dtype=torch.bfloat16, coefficient_bits=bits)
    model = by_hand(tmp_path)
    assert torch.equal(logits(model), expected)
    layers = [layer for layer in model.modules() if isinstance(layer, NolaLinearLayer)]
    assert {layer.nola_alpha["default"].dtype for layer in layers} == {torch.float32}
    expected = save_adapter(tmp_path, dtype=torch.bfloat16, coefficient_bits=bits, **whole)
    assert torch.equal(logits(from_folder(tmp_path)), expected)


def test_modules_that_were_renamed(tmp_path):
    expected = save_adapter(tmp_path, module_aliases={"model.layers.": "decoder.layers."})
    assert torch.equal(logits(by_hand(tmp_path)), expected)


def test_it_may_be_trained(tmp_path):
    save_adapter(tmp_path, dtype=torch.bfloat16, coefficient_bits=8)
    model = base_of(tmp_path)
    model.load_adapter(str(tmp_path / "adapter"), is_trainable=True)
    assert all(p.requires_grad for n, p in model.named_parameters() if "nola_" in n)


def test_the_name_on_the_hub(tmp_path, monkeypatch):
    """As it lies in the cache: files under a name and a revision."""
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when imported
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    expected = save_adapter(tmp_path, coefficient_bits=8)
    repository = tmp_path / "cache" / "models--some--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    os.rename(tmp_path / "adapter", repository / "snapshots" / ("0" * 40))
    model = base_of(tmp_path)
    place = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    model.load_adapter("some/adapter", adapter_kwargs=place)
    assert torch.equal(logits(model), expected)
    assert not asked


def test_an_adapter_without_its_tensors(tmp_path):
    save_adapter(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    model = base_of(tmp_path)
    names = set(model.state_dict())
    with pytest.raises(OSError, match="adapter_model"):
        model.load_adapter(str(tmp_path / "adapter"))
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("bits", [None, 8])
def test_fingerprints_are_checked_and_the_model_stays(bits, tmp_path):
    save_adapter(tmp_path, coefficient_bits=bits)
    path = tmp_path / "adapter" / "adapter_config.json"
    data = json.loads(path.read_text())
    for field, value in {"modules_fingerprint": "0" * 16, "basis_fingerprint": "0" * 64}.items():
        path.write_text(json.dumps({**data, field: value}))
        model = base_of(tmp_path)
        names = set(model.state_dict())
        with pytest.raises(ValueError, match=field):
            model.load_adapter(str(tmp_path / "adapter"))
        assert set(model.state_dict()) == names


def test_a_broken_file_is_refused_before_the_model_changes(tmp_path):
    save_adapter(tmp_path, coefficient_bits=8)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "coefficient_bits": 4}))
    model = base_of(tmp_path)
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="quantised otherwise"):
        model.load_adapter(str(tmp_path / "adapter"))
    assert set(model.state_dict()) == names


def test_other_methods_are_loaded_as_before(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    expected = save_adapter(tmp_path, lora)
    for load in (by_hand, from_folder):
        assert torch.equal(logits(load(tmp_path)), expected)
    with pytest.raises(ValueError, match="adapter model file not found"):
        base_of(tmp_path).load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="either pass a `peft_model_id`"):
        base_of(tmp_path).load_adapter()
