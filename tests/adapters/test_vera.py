"""VeRA folders: read, merged as a slow reference does, exported, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.errors import NolaEdgeError
from tests.conftest import MODULES, load_all, snapshot, write_safetensors
from tests.merge.checks import merged, refused
from tests.reference import merge as reference

F = np.float32
R = 5
FIRST = PREFIX + "layers.0.q.vera_lambda_"


def vera(folder, change=lambda tensors: None, **fields):
    """Write a folder as PEFT does, for modules of which none has the sizes of the projections."""
    rng = np.random.default_rng(8)
    tensors = {
        "base_model.vera_A": rng.standard_normal((R, 48)).astype(F),
        "base_model.vera_B": rng.standard_normal((44, R)).astype(F),
    }
    for module, (out, _) in MODULES.items():
        tensors[f"{PREFIX}{module}.vera_lambda_b"] = rng.standard_normal(out).astype(F)
        tensors[f"{PREFIX}{module}.vera_lambda_d"] = rng.standard_normal(R).astype(F)
    change(tensors)
    config = {
        "peft_type": "VERA",
        "r": R,
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": 0.1,
        "d_initial": 0.1,
        "init_weights": True,
        "target_modules": ["q", "v"],
        **fields,
    }
    folder.mkdir()
    write_safetensors(folder / WEIGHTS_NAME, tensors)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("transposed", [False, True])
def test_the_bits_of_the_reference(tiny, tmp_path, transposed):
    base = tmp_path / "b.safetensors"
    before = load_all(tiny[0])
    if transposed:
        for module in MODULES:
            before[f"{module}.weight"] = np.ascontiguousarray(before[f"{module}.weight"].T)
    write_safetensors(base, before)
    folder = vera(tmp_path / "v", fan_in_fan_out=transposed)
    tensors = load_all(folder / WEIGHTS_NAME)
    got = merged(base, folder, tmp_path)
    for module, (out, into) in MODULES.items():
        d, scales = (tensors[f"{PREFIX}{module}.vera_lambda_{x}"][:, None] for x in "db")
        a = d * tensors["base_model.vera_A"][:, :into]
        b = scales * tensors["base_model.vera_B"][:out]
        left, right = (a.T, b.T) if transposed else (b, a)
        wanted = reference.merge(before[f"{module}.weight"], left, right, 1.0)
        assert got[f"{module}.weight"].tobytes() == wanted.tobytes()


def test_it_is_exported_as_a_lora(tiny, tmp_path):
    folder = vera(tmp_path / "v")
    ne.export_lora([folder, (tiny[1], 0.5)], tiny[0], tmp_path / "x")
    ne.merge_checkpoint(tiny[0], [folder, (tiny[1], 0.5)], tmp_path / "direct")
    assert ne.verify_checkpoint(tmp_path / "direct", tiny[0], tmp_path / "x").identical


def put(name, values):
    return lambda tensors: tensors.__setitem__(name, values)


BAD = {
    "no projection": (lambda t: t.pop("base_model.vera_A"), {}, "save_projection=True"),
    "no d": (lambda t: t.pop(FIRST + "d"), {}, "has no partner vera_lambda_d"),
    "no b": (lambda t: t.pop(FIRST + "b"), {}, "has no partner vera_lambda_b"),
    "rank": (lambda t: None, {"r": 4}, "is of rank 5; adapter_config.json says r = 4"),
    "too many outputs": (put(FIRST + "b", np.ones(45, F)), {}, "at most the 44 rows of B"),
    "length of d": (put(FIRST + "d", np.ones(4, F)), {}, "has shape [4], must be [5]"),
    "NaN": (put(FIRST + "d", np.full(5, np.nan, F)), {}, "infinite or NaN value"),
    "foreign": (put(PREFIX + "x.weight", np.ones(2, F)), {}, "neither a factor nor a tensor"),
    "field": (lambda t: None, {"use_dora": True}, "use_dora: is True: not understood here"),
    "nothing": (
        lambda t: [t.pop(n) for n in list(t) if "lambda" in n],
        {},
        "has no vectors (no *.vera_lambda_b)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_vera_is_refused_with_one_printable_line(tmp_path, case):
    change, fields, message = BAD[case]
    folder = vera(tmp_path / "v", change, **fields)
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError) as caught:
        ne.load_adapter(folder)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_a_base_of_other_shapes_is_refused(tiny, tmp_path):
    folder = vera(tmp_path / "v", put(FIRST + "b", np.ones(23, F)))
    refused((tiny[0], folder), tmp_path, "layers.0.q: is 24 x 40 here (out x in), and the factors")
