"""What beta is counted in: chosen for a model, kept in its adapter, 1 in files from before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

import nola_edge as ne
from nola_edge.peft import NolaConfig
from nola_edge.torch import NolaLinear, to_adapter, unit_of_beta
from tests.tuner.models import SMALL, llama, logits, train, trained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

#: Few coefficients, so that the unit is not 1.
FEW = {**SMALL, "num_basis_b": 4, "lora_alpha": 8, "target_modules": "all-linear"}
#: Of the layers of `llama()`: 2 sqrt(36.57 / 4), of their mean number of outputs.
UNIT = 6.0


def edited(folder: Path, **fields: object) -> Path:
    """Change fields of a configuration; None removes one."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_it_is_chosen_for_a_model_and_is_a_factor_of_the_scaling(tmp_path: Path) -> None:
    model = trained(llama(), **FEW)
    config = model.peft_config["default"]
    assert (config.beta_unit, config.scaling) == (UNIT, 2 * UNIT)
    model.save_pretrained(tmp_path / "a")
    adapter = ne.Adapter.load(tmp_path / "a")
    assert (adapter.config.beta_unit, adapter.scaling) == (UNIT, 2 * UNIT)
    wanted = logits(model)
    llama().save_pretrained(tmp_path / "base")
    ne.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    in_memory = model.merge_and_unload().state_dict()
    for name, values in load_file(tmp_path / "merged" / "model.safetensors").items():
        assert values.tobytes() == in_memory[name].numpy().tobytes()
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "a")
    assert loaded.peft_config["default"].beta_unit == UNIT
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=0)


def test_each_adapter_of_a_model_has_its_own_and_one_that_is_given_stays() -> None:
    model = get_peft_model(llama(), NolaConfig(**FEW))
    model.add_adapter("wide", NolaConfig(**FEW | {"target_modules": ["gate_proj"]}))
    model.add_adapter("given", NolaConfig(**FEW, beta_unit=0.5))
    units = {name: config.beta_unit for name, config in model.peft_config.items()}
    assert units == {"default": UNIT, "wide": 6.9, "given": 0.5}
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.gate_proj")
    assert layer.nola_scaling == {name: 2 * unit for name, unit in units.items()}


def test_a_file_from_before_means_what_it_meant(tmp_path: Path) -> None:
    model = get_peft_model(llama(), NolaConfig(**FEW, beta_unit=1.0))
    train(model)
    model.save_pretrained(tmp_path / "a")
    old = edited(tmp_path / "a", beta_unit=None)
    assert PeftConfig.from_pretrained(old).beta_unit == 1
    loaded = PeftModel.from_pretrained(llama(), old)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert ne.Adapter.load(old).scaling == 2


def test_a_configuration_for_training_may_leave_it_open(tmp_path: Path) -> None:
    NolaConfig(**FEW).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["beta_unit"] is None
    model = get_peft_model(llama(), PeftConfig.from_pretrained(tmp_path))
    assert model.peft_config["default"].beta_unit == UNIT


def test_coefficients_in_another_unit_are_refused(tmp_path: Path) -> None:
    model = trained(llama(), **FEW)
    before = logits(model)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"already exists with `beta_unit` 6.0, but .* has 1.5"):
        model.load_adapter(edited(tmp_path / "a", beta_unit=1.5), "default")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0, -1.0, 2e6, "2", True])
def test_impossible_units_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"beta_unit.*must be a positive number up to 1e6"):
        NolaConfig(beta_unit=value)  # type: ignore[arg-type]


def test_a_layer_of_ones_own_takes_it_too(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 40), torch.nn.Linear(40, 10))
    unit = unit_of_beta([40, 10], 4)
    assert unit == 5.0
    for i in range(2):
        model[i] = NolaLinear(
            model[i], str(i), r=3, num_basis_a=5, num_basis_b=4, seed=1, beta_unit=unit
        )
        torch.nn.init.normal_(model[i].beta)
    assert "scaling=3 / 3 * 5" in repr(model)
    to_adapter(model).save(tmp_path / "a")
    adapter = ne.Adapter.load(tmp_path / "a")
    assert adapter.scaling == model[0].scaling == unit
    weight = model[0].base_layer.weight.detach().clone().numpy()
    model[0].merge()
    a, b = adapter.factors("0", 40, 9)
    ne.merge_(weight, b, a, adapter.scaling)
    np.testing.assert_array_equal(model[0].base_layer.weight.detach().numpy(), weight)
