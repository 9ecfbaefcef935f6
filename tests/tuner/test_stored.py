"""Adapters record what files call their modules, where transformers renames what it loads."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.tensor_parts import OTHERWISE
from nola_edge.errors import MismatchError
from nola_edge.peft import NolaConfig, stored_tensors
from nola_edge.torch import merge_
from tests.sweep.tiny_models import make
from tests.tuner.models import SMALL, gpt2, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
#: Renamed by a prefix in each tower, within names, and joined in one tensor besides.
RENAMED = ("qwen2_5_vl", "vit", "nomic_bert", "tipsv2_text_model")
OPTIONS = {**SMALL, "target_modules": "all-linear", "init_weights": False}


def loaded(kind, folder):
    """Return a model of some architecture as users get it, with its base in a folder."""
    made = make(kind)
    made.save_pretrained(folder)
    return type(made).from_pretrained(folder)


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", RENAMED)
def test_files_are_merged_as_the_model_is(kind, tmp_path):
    base = loaded(kind, tmp_path / "base")
    adapted = get_peft_model(base, NolaConfig(**OPTIONS))
    adapted.save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    adapter = Adapter.load(tmp_path / "adapter")
    assert adapter.tensors
    assert adapter.base_fingerprint is not None  # which was compared
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    assert same(tensors(tmp_path / "merged"), tensors(tmp_path / "wanted"))
    again = PeftModel.from_pretrained(loaded(kind, tmp_path / "base"), tmp_path / "adapter")
    again.save_pretrained(tmp_path / "again")
    assert Adapter.load(tmp_path / "again").tensors == adapter.tensors


@pytest.mark.parametrize("kind", RENAMED)
def test_a_lora_takes_its_names_from_the_model(kind, tmp_path):
    base = loaded(kind, tmp_path / "base")
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(MismatchError, match="--rename NEW=OLD"):
        ne.merge_checkpoint(tmp_path / "base", tmp_path / "lora", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    modules = load_adapter(tmp_path / "lora").modules
    names = stored_tensors(base, modules)
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "lora", tmp_path / "merged", rename=names)
    merge_(base, tmp_path / "lora")
    base.save_pretrained(tmp_path / "wanted")
    assert same(tensors(tmp_path / "merged"), tensors(tmp_path / "wanted"))


def test_rows_in_another_order_are_refused(tmp_path):
    """Rotary embeddings of some files want them so; to merge them as they are would be wrong."""
    base = loaded("gradium_phonon_tts", tmp_path / "base")
    get_peft_model(base, NolaConfig(**OPTIONS)).save_pretrained(tmp_path / "adapter")
    record = Adapter.load(tmp_path / "adapter").tensors
    assert record["layers.0.self_attn.q_proj"] == OTHERWISE
    assert record["layers.0.self_attn.v_proj"].lines is not None
    assert "layers.0.self_attn.q_proj" not in stored_tensors(base)
    for path in ("adapter", "packed.nola"):
        if path == "packed.nola":
            Adapter.load(tmp_path / "adapter").pack(tmp_path / path)
        with pytest.raises(MismatchError, match="rows in another order, as the adapter records"):
            ne.merge_checkpoint(tmp_path / "base", tmp_path / path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("kind", "saved"),
    [("gradium_phonon_tts", "layers.0.self_attn.q_proj"), ("mixtral", "experts")],
)
def test_whole_modules_that_are_no_part_of_one_tensor_are_refused(kind, saved, tmp_path):
    base = loaded(kind, tmp_path / "base")
    config = NolaConfig(**{**OPTIONS, "target_modules": ["v_proj"]}, modules_to_save=[saved])
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    assert OTHERWISE in Adapter.load(tmp_path / "adapter").tensors.values()
    with pytest.raises(MismatchError, match=f"whole tensors of .*{saved}"):
        ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("make_plain", [llama, gpt2])
def test_names_that_say_it_are_not_recorded(make_plain, tmp_path):
    base = make_plain()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    assert stored_tensors(base) == {}
    get_peft_model(base, NolaConfig(**OPTIONS)).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["tensors"] is None


def test_a_model_of_nobodys(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 8)

    assert stored_tensors(Net()) == {}


def vit(folder):
    """Return a ViT with a head, as it is loaded from a folder."""
    torch.manual_seed(0)
    made = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            image_size=16, patch_size=8,
        )
    )  # fmt: skip
    made.save_pretrained(folder)
    return ViTForImageClassification.from_pretrained(folder)


def test_whole_modules_and_biases_are_found_too(tmp_path):
    """A layer's norm is renamed as layers are; a head keeps its name."""
    options = {**SMALL, "target_modules": ["k_proj"], "init_weights": False, "bias": "nola_only"}
    config = NolaConfig(**options, modules_to_save=["classifier", "layernorm_after"])
    adapted = get_peft_model(vit(tmp_path / "base"), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    merged = tensors(tmp_path / "merged")
    assert same(merged, tensors(tmp_path / "wanted"))
    before = tensors(tmp_path / "base")
    changed = {
        name.rpartition(".")[2] for name in merged if not torch.equal(merged[name], before[name])
    }
    assert changed == {"weight", "bias"}


def test_training_goes_on_from_a_record(tmp_path):
    """Names are recorded anew, and what is saved from a wrapped model is the same."""
    base = vit(tmp_path / "base")
    adapted = get_peft_model(base, NolaConfig(**OPTIONS))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.base_model.model = torch.compile(adapted.base_model.model)
    adapted.save_pretrained(tmp_path / "compiled")
    one, other = (Adapter.load(tmp_path / name) for name in ("adapter", "compiled"))
    assert one.tensors == other.tensors
    assert "vit.layers.0.attention.k_proj" in one.tensors
