"""An adapter is loaded onto the base that it was trained on, or there is a warning."""

from __future__ import annotations

import shutil
import warnings

import pytest
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM

import nola_edge as ne
from nola_edge.peft import NolaConfig
from tests.tuner.models import SMALL, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
OPTIONS = {**SMALL, "target_modules": ["q_proj", "down_proj"], "init_weights": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, an adapter that was made for it, and the two merged."""
    folder = tmp_path_factory.mktemp("bases")
    llama().save_pretrained(folder / "base")
    model = get_peft_model(from_folder(folder / "base"), NolaConfig(**OPTIONS))
    model.save_pretrained(folder / "adapter")
    ne.merge_checkpoint(folder / "base", folder / "adapter", folder / "merged")
    return folder


def from_folder(path):
    return LlamaForCausalLM.from_pretrained(path)


def warnings_of(load):
    """Return what was said about the base while an adapter was loaded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load()
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "base_fingerprint" in text]


def by_peft(model, adapter, **options):
    return PeftModel.from_pretrained(model, adapter, **options)


def beside_another(model, adapter):
    get_peft_model(model, NolaConfig(**OPTIONS)).load_adapter(adapter, "second")


def by_transformers(model, adapter):
    model.load_adapter(str(adapter))


@pytest.mark.parametrize("load", [by_peft, beside_another, by_transformers])
def test_a_merged_base_gives_one_line(load, folder):
    said = warnings_of(lambda: load(from_folder(folder / "merged"), folder / "adapter"))
    assert len(said) == 1
    assert said[0].isprintable()
    recorded = ne.Adapter.load(folder / "adapter").config.base_fingerprint
    assert f"`base_fingerprint` is {recorded}, the folder gives" in said[0]
    assert str(folder / "merged") in said[0]


@pytest.mark.parametrize("load", [by_peft, beside_another, by_transformers])
def test_the_right_base_gives_none(load, folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "moved")
    for base in (folder / "base", tmp_path / "moved"):
        assert not warnings_of(lambda base=base: load(from_folder(base), folder / "adapter"))


def test_training_that_goes_on_gives_none(folder, tmp_path):
    def resume():
        model = by_peft(from_folder(folder / "base"), folder / "adapter", is_trainable=True)
        model.save_pretrained(tmp_path / "checkpoint")
        model.load_adapter(tmp_path / "checkpoint", "default", is_trainable=True)

    assert not warnings_of(resume)


def test_a_fresh_adapter_has_no_base_to_compare(folder):
    base = from_folder(folder / "merged")
    assert not warnings_of(lambda: get_peft_model(base, NolaConfig(**OPTIONS)))


def test_a_base_that_cannot_be_read_is_unknown(folder, tmp_path):
    assert not warnings_of(lambda: by_peft(llama(), folder / "adapter"))
    shutil.copytree(folder / "merged", tmp_path / "gone")
    model = from_folder(tmp_path / "gone")
    (tmp_path / "gone" / "model.safetensors").write_bytes(b"broken")
    assert not warnings_of(lambda: by_peft(model, folder / "adapter"))
