"""Training with coefficients of few bits: which are exact, and files of any age."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.peft import NolaConfig
from tests.conftest import snapshot
from tests.tuner.models import SMALL, llama, logits, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


def parameters(model, ending):
    return {name: p for name, p in model.named_parameters() if f"nola_{ending}" in name}


def with_field(folder, value):
    """Say in a file whether the first is exact, or (with "absent") as older ones do, nothing."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["exact_first_alpha"] = value
    if value == "absent":
        del config["exact_first_alpha"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("bits", [None, 8, 3])
def test_a_script_need_not_say_it_and_a_file_says_it(bits, tmp_path):
    config = NolaConfig(**SMALL, coefficient_bits=bits)
    assert config.exact_first_alpha is (bits is not None)
    assert (
        NolaConfig(**SMALL, coefficient_bits=bits, exact_first_alpha=False).exact_first_alpha
        is False
    )
    config.save_pretrained(tmp_path)
    assert NolaConfig.from_pretrained(tmp_path).exact_first_alpha is (bits is not None)
    for value in ("absent", None, False):
        with_field(tmp_path, value)
        assert NolaConfig.from_pretrained(tmp_path).exact_first_alpha is False


@pytest.mark.parametrize(("value", "bits"), [(True, None), (1, 4), ("yes", 4)])
def test_what_it_cannot_be(value, bits):
    with pytest.raises(ValueError, match="exact_first_alpha"):
        NolaConfig(**SMALL, coefficient_bits=bits, exact_first_alpha=value)


@pytest.mark.parametrize("exact", [True, False])
def test_only_the_first_of_alpha_is_saved_as_trained(exact, tmp_path):
    model = trained(llama(), coefficient_bits=3, exact_first_alpha=exact)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    saved = ne.Adapter.load(tmp_path / "adapter")
    assert saved.config.exact_first_alpha is exact
    for factor in ("alpha", "beta"):
        live = {name: p.detach().numpy() for name, p in parameters(model, factor).items()}
        live = np.stack([live[f"{PREFIX}{m}.nola_{factor}.default"] for m in saved.modules])
        held = np.stack([getattr(c, factor) for c in saved.modules.values()])
        assert np.array_equal(held[:, 0], live[:, 0]) is (exact and factor == "alpha")
        assert not np.array_equal(held[:, 1:], live[:, 1:])
    again = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.equal(logits(again), expected)


def test_the_exact_one_is_trained():
    model = get_peft_model(
        llama(),
        NolaConfig(**SMALL, target_modules=["q_proj"], coefficient_bits=3, init_weights=False),
    )
    logits_of = model(torch.arange(1, 9)[None]).logits
    logits_of.square().sum().backward()
    assert all(p.grad[0] != 0 for p in parameters(model, "alpha").values())


def test_another_form_under_a_name_that_is_taken(tmp_path):
    for name, exact in (("one", True), ("other", False)):
        trained(llama(), coefficient_bits=4, exact_first_alpha=exact).save_pretrained(
            tmp_path / name
        )
    model = PeftModel.from_pretrained(llama(), tmp_path / "one")
    expected, before = logits(model), snapshot(tmp_path)
    with pytest.raises(ValueError, match="`exact_first_alpha`"):
        model.load_adapter(tmp_path / "other", "default")
    with pytest.raises(ValueError, match="whose `exact_first_alpha` is True"):
        peft.set_peft_model_state_dict(model, peft.utils.load_peft_weights(tmp_path / "other"))
    assert torch.equal(logits(model), expected)
    assert snapshot(tmp_path) == before
