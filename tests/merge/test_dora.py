"""DoRA: outputs scaled to trained norms, whatever windows and strips the weight is cut into."""

from __future__ import annotations

import math
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX, WEIGHTS_NAME
from nola_edge.errors import AdapterError, ArgumentError, NotFiniteError
from nola_edge.export.lora import export_lora
from nola_edge.merge import windows
from nola_edge.merge.dora import sums_of_squares
from nola_edge.testing import AdapterContract, AdapterFiles
from tests.conftest import MODULES, load_all, write_safetensors
from tests.lora_folders import factors, lora_config, read_factors, with_magnitudes, write_lora
from tests.merge.checks import merged, refused
from tests.reference import merge as reference

F = np.float32


def slow_dora(weight, left, right, s, norms, outputs_are_rows):
    """Return the merged weight, number by number; sums are exact before they are rounded."""
    plain = reference.merge(weight.astype(F), left, right, s)
    outputs = plain if outputs_are_rows else plain.T
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in row)) for row in outputs]
    factor = np.array([F(float(m) / n) for m, n in zip(norms, lengths, strict=True)])
    found = factor[:, None] * outputs
    return (found if outputs_are_rows else found.T).astype(weight.dtype)


def close(found, wanted):
    """Tell whether all are equal but for a last bit where a norm lies between two numbers."""
    ulp = np.spacing(np.abs(wanted.astype(F)).max())
    if wanted.dtype != F:
        ulp = 0
    return np.abs(found.astype(float) - wanted.astype(float)).max() <= ulp


class TestDora(AdapterContract):
    required_fields = ("r", "lora_alpha")
    bad_fields: ClassVar = {"use_dora": ["yes"]}
    alone = True

    def files(self, shapes, seed=0):
        tensors = with_magnitudes(factors(shapes, seed=seed), seed)
        return AdapterFiles(lora_config(use_dora=True), tensors)

    def product(self, files, module, shape):
        a, b = (files.tensors[f"{PREFIX}{module}.lora_{x}.weight"] for x in "AB")
        return b, a, 2.0

    def merged(self, weight, files, module, shape, *, transposed):
        b, a, s = self.product(files, module, shape)
        norms = files.tensors[f"{PREFIX}{module}.lora_magnitude_vector"]
        left, right = (a.T, b.T) if transposed else (b, a)
        return slow_dora(weight, left, right, s, norms, not transposed)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    rank=st.integers(1, 4),
    kind=st.sampled_from(["layer", "transposed", "embedding"]),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 99),
)
@example(shape=(1, 5), rank=2, kind="transposed", dtype=np.float32, seed=1)
@example(shape=(1, 5), rank=2, kind="layer", dtype=np.float32, seed=1)
def test_any_shape_and_orientation(tmp_path_factory, shape, rank, kind, dtype, seed):
    tmp_path = tmp_path_factory.mktemp("any")
    rows = kind == "layer"
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape if rows else shape[::-1]).astype(dtype)
    write_safetensors(tmp_path / "b.safetensors", {"m.weight": weight})
    embeddings = ("m",) if kind == "embedding" else ()
    tensors = with_magnitudes(factors({"m": shape}, {"m": rank}, seed, embeddings=embeddings), seed)
    flag = kind == "transposed"
    folder = write_lora(tmp_path / "l", tensors, r=rank, use_dora=True, fan_in_fan_out=flag)
    a, b = read_factors(folder, "m")
    left, right = (b, a) if rows else (a.T, b.T)
    norms = tensors[PREFIX + "m.lora_magnitude_vector"]
    wanted = slow_dora(weight, left, right, 8 / rank, norms, rows)
    with ne.open_merged(tmp_path / "b.safetensors", folder) as found:
        assert close(found["m.weight"], wanted)


@given(st.integers(1, 300), st.integers(0, 99))
def test_sums_do_not_depend_on_their_neighbours(length, seed):
    values = np.random.default_rng(seed).standard_normal((5, length)).astype(F)
    sums = sums_of_squares(values)
    assert np.array_equal(sums[2:3], sums_of_squares(values[2:3]))
    exact = [math.fsum(float(x) ** 2 for x in row) for row in values]
    np.testing.assert_allclose(sums[:, 0], exact, rtol=1e-15)


@pytest.mark.parametrize(("transposed", "columns"), [(False, 3), (True, 3), (True, 1)])
def test_windows_and_threads_do_not_show(tiny, tmp_path, monkeypatch, transposed, columns):
    tensors = load_all(tiny[0])
    if transposed:
        for module in MODULES:
            tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    base = tmp_path / "b.safetensors"
    write_safetensors(base, tensors)
    dora = with_magnitudes(factors())
    folder = write_lora(tmp_path / "l", dora, use_dora=True, fan_in_fan_out=transposed)
    plain = write_lora(tmp_path / "plain", factors(seed=1), fan_in_fan_out=transposed)
    outputs = [tmp_path / "whole.safetensors", tmp_path / "each" / "l.safetensors"]
    ne.merge_checkpoint(base, folder, outputs[0])
    monkeypatch.setattr(windows, "BLOCK_BYTES", 700)
    monkeypatch.setattr(windows, "_STRIP_BYTES", 200 if columns > 1 else 1)
    monkeypatch.setattr(windows, "_ALIGNMENT", columns)
    ne.merge_each(base, [folder, plain], tmp_path / "each", num_threads=3)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert ne.verify_checkpoint(outputs[0], base, folder).identical


def test_other_weights_of_a_merge_may_have_other_adapters(tiny, tmp_path):
    only = {"layers.0.v": MODULES["layers.0.v"]}
    dora = write_lora(tmp_path / "d", with_magnitudes(factors(only)), use_dora=True)
    rest = write_lora(tmp_path / "r", factors({m: s for m, s in MODULES.items() if m not in only}))
    got = merged(tiny[0], [dora, (rest, 0.5)], tmp_path)
    with ne.open_merged(tiny[0], dora) as alone:
        assert got["layers.0.v.weight"].tobytes() == alone["layers.0.v.weight"].tobytes()


def test_what_dora_cannot_be(tiny, tmp_path):
    base, nola = tiny
    folder = write_lora(tmp_path / "d", with_magnitudes(factors()), use_dora=True)
    refused((base, folder), tmp_path, "merged with weight 0.5", [(folder, 0.5)], ArgumentError)
    refused((base, folder), tmp_path, "shares a weight with other", [folder, nola], ArgumentError)
    with pytest.raises(AdapterError, match="a LoRA does not"):
        export_lora(folder, base, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_output_without_weights_has_no_direction(tiny, tmp_path):
    tensors = load_all(tiny[0])
    tensors["layers.0.q.weight"][3] = 0
    write_safetensors(tmp_path / "b.safetensors", tensors)
    dora = with_magnitudes(factors())
    dora[PREFIX + "layers.0.q.lora_B.weight"][3] = 0
    folder = write_lora(tmp_path / "d", dora, use_dora=True)
    refused(
        (tmp_path / "b.safetensors", folder), tmp_path, "is infinite or NaN", error=NotFiniteError
    )


def test_the_vector_of_other_versions_of_peft(tiny, tmp_path):
    """They call its only parameter by its name."""
    dora = with_magnitudes(factors())
    named = {n + ".weight" * n.endswith("_vector"): values for n, values in dora.items()}
    one = write_lora(tmp_path / "one", dora, use_dora=True)
    two = write_lora(tmp_path / "two", named, use_dora=True)
    assert load_all(one / WEIGHTS_NAME).keys() != load_all(two / WEIGHTS_NAME).keys()
    ne.merge_checkpoint(tiny[0], one, tmp_path / "m")
    assert ne.verify_checkpoint(tmp_path / "m", tiny[0], two).identical
