"""VeRA holds what every method must; its own refusals, and its export."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.testing import AdapterContract, AdapterFiles
from nola_edge.testing.checks import refusal
from tests.conftest import MODULES

F = np.float32
R = 5


def vera_files(shapes, seed=0):
    """Return what PEFT saves: projections as large as the largest of the layers."""
    rng = np.random.default_rng(seed)
    outs, ins = zip(*shapes.values(), strict=True)
    tensors = {
        "base_model.vera_A": rng.standard_normal((R, max(ins))).astype(F),
        "base_model.vera_B": rng.standard_normal((max(outs), R)).astype(F),
    }
    for module, (out, _) in shapes.items():
        tensors[f"{PREFIX}{module}.vera_lambda_b"] = rng.standard_normal(out).astype(F)
        tensors[f"{PREFIX}{module}.vera_lambda_d"] = rng.standard_normal(R).astype(F)
    config = {
        "peft_type": "VERA",
        "r": R,
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": 0.1,
        "d_initial": 0.1,
        "init_weights": True,
        "target_modules": ["q", "v"],
    }
    return AdapterFiles(config, tensors)


class TestVera(AdapterContract):
    required_fields = ("r",)
    bad_fields: ClassVar = {
        "r": [0, "5", True, 5.0],
        "bias": ["some"],
        "modules_to_save": ["head"],
    }

    def files(self, shapes, seed=0):
        return vera_files(shapes, seed)

    def product(self, files, module, shape):
        out, into = shape
        d, scales = (files.tensors[f"{PREFIX}{module}.vera_lambda_{x}"][:, None] for x in "db")
        a = d * files.tensors["base_model.vera_A"][:, :into]
        return scales * files.tensors["base_model.vera_B"][:out], a, 1.0


def test_another_rank_than_that_of_the_projections_is_refused(tmp_path):
    folder = vera_files(MODULES).with_fields(r=4).write(tmp_path / "v")
    error = refusal(tmp_path, lambda: ne.load_adapter(folder))
    assert "is of rank 5; adapter_config.json says r = 4: correct it there, or" in str(error)


def test_it_is_exported_as_a_lora(tiny, tmp_path):
    folder = vera_files(MODULES).write(tmp_path / "v")
    ne.export_lora([folder, (tiny[1], 0.5)], tiny[0], tmp_path / "x")
    ne.merge_checkpoint(tiny[0], [folder, (tiny[1], 0.5)], tmp_path / "direct")
    assert ne.verify_checkpoint(tmp_path / "direct", tiny[0], tmp_path / "x").identical


ALONE = (PREFIX + "layers.0.q.vera_lambda_d", PREFIX + "layers.0.q.vera_lambda_b")
BAD = {
    "no projection": ({"base_model.vera_A": ...}, "save_projection=True"),
    "no d": ({ALONE[0]: ...}, "has no partner vera_lambda_d; the file is not complete"),
    "no b": ({ALONE[1]: ...}, "has no partner vera_lambda_b; the file is not complete"),
    "too many outputs": ({ALONE[1]: np.ones(45, F)}, "at most the 40 rows of B"),
    "nothing": (
        {f"{PREFIX}{module}.vera_lambda_{x}": ... for module in MODULES for x in "bd"},
        "has no vectors (no *.vera_lambda_b)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_vera_is_refused_with_what_to_do(tmp_path, case):
    tensors, message = BAD[case]
    folder = vera_files(MODULES).with_tensors(tensors).write(tmp_path / "v")
    assert message in str(refusal(tmp_path, lambda: ne.load_adapter(folder)))


def test_the_frozen_weight_of_an_output_layer_is_passed_over(tmp_path):
    frozen = {PREFIX + "layers.0.q.base_layer.weight": np.ones((24, 40), F)}
    adapter = ne.load_adapter(vera_files(MODULES).with_tensors(frozen).write(tmp_path / "v"))
    assert list(adapter.modules) == list(MODULES)
    assert not adapter.whole_tensors


@pytest.mark.parametrize("shape", [(23, 40), (24, 41), (24,)])
def test_a_weight_that_is_not_the_layers_is_refused(tmp_path, shape):
    frozen = {PREFIX + "layers.0.q.base_layer.weight": np.ones(shape, F)}
    folder = vera_files(MODULES).with_tensors(frozen).write(tmp_path / "v")
    error = refusal(tmp_path, lambda: ne.load_adapter(folder))
    assert "which its factors do not fit" in str(error)
