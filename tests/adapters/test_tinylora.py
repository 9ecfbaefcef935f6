"""TinyLoRA holds what every method must; whose vector is whose, and its own refusals."""

from __future__ import annotations

import os
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.torch_normal import standard_normal
from nola_edge.testing import AdapterContract, AdapterFiles
from nola_edge.testing.checks import refusal
from tests.conftest import MODULES

F = np.float32
R, U = 3, 5
VECTOR = "base_model.tinylora_v."
FIRST = PREFIX + "layers.0.q.tinylora_"


def projection(place, r=R, seed=42):
    """Return what torch draws for a module, as tests/integrations/test_tinylora.py compares."""
    return (standard_normal(seed + place, U * r * r) / np.sqrt(r)).astype(F).reshape(U, r, r)


def tinylora_files(shapes, seed=0, tying=0.5):
    """Return what PEFT saves of modules in the model's order."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for place, (module, (out, into)) in enumerate(shapes.items()):
        stem = f"{PREFIX}{module}.tinylora_"
        tensors[stem + "A"] = rng.standard_normal((R, into)).astype(F)
        tensors[stem + "B"] = rng.standard_normal((out, R)).astype(F)
        tensors[stem + "P"] = projection(place)
    for group in range(max(1, round(len(shapes) * (1 - tying)))):
        tensors[f"{VECTOR}{group}"] = rng.standard_normal(U).astype(F)
    config = {
        "peft_type": "TINYLORA",
        "bias": "none",
        "init_v_bound": 0.02,
        "init_weights": True,
        "projection_seed": 42,
        "r": R,
        "save_projection": True,
        "tinylora_dropout": 0.1,
        "u": U,
        "weight_tying": tying,
    }
    return AdapterFiles(config, tensors)


def slow_product(files, module, vector):
    """Return B R and A, the sums in double and in order."""
    a, b, p = (files.tensors[f"{PREFIX}{module}.tinylora_{x}"].astype(float) for x in "ABP")
    core = sum(v * part for v, part in zip(vector.astype(float), p, strict=True)).astype(F)
    left = sum(b[:, j : j + 1] * core[j].astype(float) for j in range(len(core)))
    return left.astype(F), a.astype(F), 1.0


class TestTinyLora(AdapterContract):
    """Three modules share two vectors: the first has one, the others the other."""

    groups: ClassVar = {"layers.0.q": 0, "layers.0.v": 1, "layers.1.q": 1}
    required_fields = ("r", "u", "weight_tying", "projection_seed")
    bad_fields: ClassVar = {
        "r": [0, "3", True],
        "u": [0, 5.0],
        "weight_tying": [-0.1, 1.5, "0"],
        "projection_seed": [-1, 1.5, "42"],
        "bias": ["some"],
        "modules_to_save": ["head"],
    }

    def files(self, shapes, seed=0):
        return tinylora_files(shapes, seed)

    def product(self, files, module, shape):
        return slow_product(files, module, files.tensors[f"{VECTOR}{self.groups[module]}"])


SIX = {f"layers.{i}.{name}": (8, 8) for i in (0, 10, 2) for name in ("q", "k")}


@pytest.mark.parametrize(
    ("tying", "groups"),
    [(0.0, [0, 1, 2, 3, 4, 5]), (0.4, [0, 1, 2, 3, 3, 3]), (0.5, [0, 0, 1, 1, 2, 2])],
)
def test_modules_are_counted_in_the_order_that_seeded_them(tmp_path, tying, groups):
    """Not in that of their names, nor in that of the file."""
    files = tinylora_files(SIX, tying=tying)
    turned = AdapterFiles(files.config, dict(reversed(files.tensors.items())))
    loaded = ne.load_adapter(turned.write(tmp_path / "t"))
    for module, group in zip(SIX, groups, strict=True):
        wanted = slow_product(files, module, files.tensors[f"{VECTOR}{group}"])[0]
        assert loaded.factor_b(module, 8).tobytes() == wanted.tobytes()


def test_one_vector_of_all_needs_no_order(tmp_path):
    files = tinylora_files(MODULES, tying=1.0).with_fields(projection_seed=7)
    assert len(ne.load_adapter(files.write(tmp_path / "t")).modules) == 3


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_projections_of_half_precision_are_recognised(tmp_path, dtype):
    files = tinylora_files(MODULES)
    halves = {name: t.astype(dtype) for name, t in files.tensors.items() if name.endswith("_P")}
    files = files.with_tensors(halves)
    loaded = ne.load_adapter(files.write(tmp_path / "t"))
    wanted = slow_product(files, "layers.1.q", files.tensors[VECTOR + "1"])[0]
    assert loaded.factor_b("layers.1.q", 24).tobytes() == wanted.tobytes()


def test_a_small_weight_has_a_smaller_rank(tmp_path):
    files = tinylora_files({"m": (2, 9)}, tying=0.0)
    stem = PREFIX + "m.tinylora_"
    files = files.with_tensors(
        {
            stem + "A": files.tensors[stem + "A"][:2],
            stem + "B": files.tensors[stem + "B"][:, :2],
            stem + "P": projection(0, 2),
        }
    )
    assert ne.load_adapter(files.write(tmp_path / "t")).rank("m") == 2


BAD = {
    "no projection": ({FIRST + "P": ...}, {}, "save it with save_projection=True"),
    "no A": ({FIRST + "A": ...}, {}, "has no partner tinylora_A"),
    "another seed": ({}, {"projection_seed": 43}, "is not what projection_seed gives any module"),
    "of another place": ({FIRST + "P": projection(7)}, {}, "is not what projection_seed gives"),
    "twice the same": ({FIRST + "P": projection(1)}, {}, "train with weight_tying=1.0"),
    "a vector more": ({VECTOR + "2": np.ones(U, F)}, {}, "makes 2 vectors of 3 modules"),
    "a vector less": ({VECTOR + "1": ...}, {}, "is missing: weight_tying makes 2 vectors"),
    "other tying": ({}, {"weight_tying": 1.0}, "is left over: weight_tying makes 1 vectors"),
    "rank": ({}, {"r": 2}, "is of rank 3; r = 2 in adapter_config.json makes 2"),
    "length": ({}, {"u": 4}, "has shape [5, 3, 3], must be [4, 3, 3]"),
    "nothing": (
        {f"{PREFIX}{m}.tinylora_{x}": ... for m in MODULES for x in "ABP"},
        {},
        "has no factors (no *.tinylora_A)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_tinylora_is_refused_with_what_to_do(tmp_path, case):
    tensors, fields, message = BAD[case]
    files = tinylora_files(MODULES).with_tensors(tensors).with_fields(**fields)
    folder = files.write(tmp_path / "t")
    assert message in str(refusal(tmp_path, lambda: ne.load_adapter(folder)))


def test_loading_reads_the_factors_once(tmp_path, monkeypatch):
    folder = tinylora_files({"layers.0.q": (2000, 3000)}).write(tmp_path / "t")
    taken = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: taken.append(a[1]) or pread(*a))
    ne.load_adapter(folder)
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert size <= sum(taken) < 1.5 * size
