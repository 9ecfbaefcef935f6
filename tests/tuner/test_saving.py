"""What is saved of an adapter."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM

import nola_edge as ne
from nola_edge.peft import NolaConfig
from tests.tuner.models import SMALL, llama, train

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves
RANDOM = {**SMALL, "target_modules": ["q_proj", "down_proj"], "init_weights": False}


def adapted(base, **options):
    torch.manual_seed(11)
    return get_peft_model(base, NolaConfig(**RANDOM | options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Base, and the adapter of a model that nothing wraps."""
    folder = tmp_path_factory.mktemp("plain")
    llama().save_pretrained(folder / "base")
    adapted(from_base(folder)).save_pretrained(folder / "adapter")
    return folder


def from_base(folder):
    return LlamaForCausalLM.from_pretrained(folder / "base")


def test_a_second_adapter_knows_its_base(plain, tmp_path):
    model = adapted(from_base(plain))
    model.add_adapter("two", NolaConfig(**{**RANDOM, "seed": 2}))
    train(model, steps=1)
    for folder in ("once", "twice"):
        model.save_pretrained(tmp_path / folder)
        configs = [ne.Adapter.load(tmp_path / folder / name).config for name in ("", "two")]
        assert configs[0].base_fingerprint == configs[1].base_fingerprint is not None
    other = llama(seed=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ne.NolaEdgeError, match="base_fingerprint"):
        ne.merge_checkpoint(tmp_path / "other", tmp_path / "once" / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()
