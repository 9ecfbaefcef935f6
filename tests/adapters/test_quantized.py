"""Quantised and packed adapters: exact round trips, every refusal, and the promised size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nola_edge as ne
from nola_edge import Adapter, NolaEdgeError
from nola_edge.adapters.quantize import BITS, dequantize, fits, quantize, rounded
from nola_edge.demo.synthetic import llama_7b, trained_adapter
from nola_edge.files.safetensors import SafetensorsFile
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors

floats = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = arrays(np.float32, st.integers(1, 70), elements=floats)


@given(vectors, st.sampled_from(BITS), st.booleans())
def test_rounding_is_idempotent(values, bits, exact_first):
    quantized = quantize(values, bits, exact_first=exact_first)
    once = dequantize(quantized, len(values), bits)
    assert quantized.packed.nbytes == (len(values) * bits + 7) // 8
    assert quantized.scale.nbytes == 4 + 4 * exact_first
    if exact_first:
        assert once[:1].tobytes() == values[:1].tobytes()
    again = quantize(once, bits, exact_first=exact_first)
    assert again.packed.tobytes() == quantized.packed.tobytes()
    assert dequantize(again, len(values), bits).tobytes() == once.tobytes()


def squared_error(got, wanted):
    return float(((got.astype("f8") - wanted) ** 2).sum())


def best_by_trial(values, bits):
    """The least squared error with the largest integer at any of the ends, in double."""
    largest = (1 << (bits - 1)) - 1
    scales = [np.abs(values.astype("f8")).max() / largest * end / 16 for end in range(6, 17)]
    grids = [np.clip(np.rint(values / (s or 1)), -largest, largest) * s for s in scales]
    return min(squared_error(grid, values) for grid in grids)


@given(vectors, st.sampled_from(BITS))
def test_no_end_of_the_grid_is_better(values, bits):
    got = squared_error(rounded(values, bits), values)
    # More by what rounding the scale to 16 bits changes at the far end.
    slack = len(values) * (float(np.abs(values).max()) * 2.0**-12) ** 2
    assert got <= best_by_trial(values, bits) * 1.01 + slack + 1e-70


@given(arrays(np.float32, st.integers(1, 70), elements=st.integers(-3, 3)), st.sampled_from(BITS))
def test_what_is_on_a_grid_stays(values, bits):
    """A file of any age, whatever its rounding: one of its integers is as large as they get."""
    values[0] = 3
    if bits > 3:
        values[0] = (1 << (bits - 1)) - 1
    assert fits(values, bits)
    assert rounded(values, bits).tobytes() == (values + 0).tobytes()


@given(vectors, st.sampled_from(BITS), st.booleans())
def test_what_fits_is_what_rounding_leaves(values, bits, exact_first):
    once = rounded(values, bits, exact_first=exact_first)
    assert fits(once, bits, exact_first=exact_first)
    assert fits(values, bits, exact_first=exact_first) == np.array_equal(once, values)


def test_the_order_of_coefficients_does_not_matter():
    """Errors are summed without rounding: any device, in whatever order, finds the same scale."""
    values = np.random.default_rng(5).standard_normal(40_000).astype(np.float32)
    for bits in BITS:
        scales = {
            quantize(v, bits).scale.tobytes() for v in (values, values[::-1], np.sort(values))
        }
        assert len(scales) == 1


@pytest.mark.parametrize("bits", [3, 4])
def test_a_large_first_coefficient_costs_the_others_nothing(bits):
    """As the start leaves it in alpha, it is ten times as large as the others."""
    values = np.random.default_rng(4).standard_normal(128).astype(np.float32)
    alone = squared_error(rounded(values[1:], bits), values[1:])
    values[0] = 10 * values.std()
    assert squared_error(rounded(values, bits, exact_first=True), values) == alone
    assert squared_error(rounded(values, bits), values) > 4 * alone


@given(vectors, st.sampled_from(BITS))
def test_values_are_exact_products(values, bits):
    """scale * q needs no rounding, so every reader gets the same float."""
    quantized = quantize(values, bits)
    values = dequantize(quantized, len(values), bits).astype("f8")
    if quantized.scale > 0:
        assert (values / float(quantized.scale[0]) % 1 == 0).all()


@pytest.mark.torch
@given(vectors, st.sampled_from(BITS), st.booleans())
def test_training_sees_the_stored_values(values, bits, exact_first):
    torch = pytest.importorskip("torch")
    from nola_edge.torch import fake_quantize

    got = fake_quantize(torch.from_numpy(values), bits, exact_first=exact_first).numpy()
    np.testing.assert_array_equal(got, rounded(values, bits, exact_first=exact_first))


@pytest.mark.torch
def test_straight_through_gradient():
    torch = pytest.importorskip("torch")
    from nola_edge.torch import fake_quantize

    c = torch.randn(9, requires_grad=True)
    weights = torch.randn(9)
    (fake_quantize(c, 4) * weights).sum().backward()
    assert torch.equal(c.grad, weights)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", ["folder", "packed"])
def test_round_trip_and_merge(bits, form, tiny, tmp_path):
    base, _ = tiny
    adapter = tiny_adapter().quantize(bits)
    path = tmp_path / form
    adapter.save(path) if form == "folder" else adapter.pack(path)
    again = Adapter.load(path)
    assert again.config.coefficient_bits == bits
    for module, coefficients in adapter.modules.items():
        assert again.modules[module].alpha.tobytes() == coefficients.alpha.tobytes()
        assert again.modules[module].beta.tobytes() == coefficients.beta.tobytes()
    # The same values as floats give the same merged bits.
    plain = Adapter(tiny_adapter().config, adapter.modules)
    ne.merge_checkpoint(base, path, tmp_path / "a")
    ne.merge_checkpoint(base, plain, tmp_path / "b")
    a, b = load_all(tmp_path / "a"), load_all(tmp_path / "b")
    assert all(a[name].tobytes() == b[name].tobytes() for name in b)


def test_packing_floats_and_whole_tensors_loses_nothing(tmp_path):
    adapter = tiny_adapter()
    config = adapter.config.__class__(**{**adapter.config.__dict__, "modules_to_save": ("head",)})
    whole = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    Adapter(config, adapter.modules, whole).pack(tmp_path / "one.nola")
    again = Adapter.load(tmp_path / "one.nola")
    assert again.whole_tensors["head.weight"].tobytes() == whole["head.weight"].tobytes()
    for module, coefficients in adapter.modules.items():
        assert again.modules[module].alpha.tobytes() == coefficients.alpha.tobytes()
    again.save(tmp_path / "folder")
    assert list(Adapter.load(tmp_path / "folder").modules) == list(adapter.modules)


def test_size_of_a_packed_7b_adapter(tmp_path):
    """224 modules, k = l = 128, 8 bits: at most 1.1 bytes per coefficient, 65 kB."""
    adapter = trained_adapter(llama_7b(32).linears(), r=16, num_basis=128).quantize(8)
    assert len(adapter.modules) == 224
    adapter.pack(tmp_path / "7b.nola")
    size = (tmp_path / "7b.nola").stat().st_size
    assert adapter.num_coefficients == 224 * 256
    assert size <= 1.1 * adapter.num_coefficients
    assert size <= 65_000


def test_coefficients_that_the_bits_cannot_hold_are_refused():
    adapter = tiny_adapter().quantize(4)
    other = {name: (c.alpha + np.float32(1e-3), c.beta) for name, c in adapter.modules.items()}
    with pytest.raises(NolaEdgeError, match="4 bits"):
        adapter.replace(other)
    with pytest.raises(NolaEdgeError, match="one of 3, 4, 8"):
        tiny_adapter().quantize(5)


def tensors_of(path):
    with SafetensorsFile.open(path) as file:
        return {name: np.array(file.array(name)) for name in file.tensors}


def damage_dtype(tensors, name):
    tensors[name] = tensors[name].astype(np.float32)


def damage_size(tensors, name):
    tensors[name] = tensors[name][:-1]


def damage_no_scale(tensors, name):
    del tensors[name + "_scale"]


def damage_scale_alone(tensors, name):
    del tensors[name]


def damage_nan_scale(tensors, name):
    tensors[name + "_scale"][:] = np.nan


def damage_fine_scale(tensors, name):
    tensors[name + "_scale"][:] = np.nextafter(tensors[name + "_scale"], np.float32(9))


def damage_range(tensors, name):
    tensors[name][0] &= 0xF0  # the integer -8, which no coefficient has


def damage_padding(tensors, name):
    tensors[name][-1] |= 0xF0


@pytest.mark.parametrize(
    "damage",
    [
        damage_dtype, damage_size, damage_no_scale, damage_scale_alone, damage_nan_scale,
        damage_fine_scale, damage_range, damage_padding,
    ],
)  # fmt: skip
def test_broken_quantised_folders(damage, tmp_path):
    adapter = odd_adapter()
    adapter.save(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = tensors_of(path)
    damage(tensors, "base_model.model.layers.0.q.nola_alpha")
    write_safetensors(path, tensors)
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError):
        Adapter.load(tmp_path / "a")
    assert snapshot(tmp_path) == before


def odd_adapter():
    """Nine and seven coefficients, so that four bits leave padding."""
    adapter = trained_adapter({"layers.0.q": (8, 8)}, r=2, num_basis=9)
    return adapter.quantize(4)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("scales"),
        lambda t: t.pop("about"),
        lambda t: t.update(coefficients=t["coefficients"][:-1]),
        lambda t: t.update(scales=t["scales"].astype(np.float16)),
        lambda t: t.update(about=t["about"][:-3]),
        lambda t: t.update(about=np.concatenate([t["about"], t["about"]])),
        lambda t: t.update(extra=np.zeros(3, np.float32)),
        lambda t: t["scales"].__setitem__(0, -1),
    ],
)
def test_broken_packed_files(change, tmp_path):
    path = tmp_path / "a.nola"
    odd_adapter().pack(path)
    tensors = tensors_of(path)
    change(tensors)
    rewrite(path, tensors)
    with pytest.raises(NolaEdgeError):
        Adapter.load(path)


def rewrite(path, tensors):
    from nola_edge.adapters.packed import FORMAT, contents_hash
    from nola_edge.adapters.peft_folder import write_tensors
    from nola_edge.files.tensors import ArrayTensor

    path.unlink()
    sha256 = contents_hash({name: ArrayTensor(values) for name, values in tensors.items()})
    write_tensors(path, tensors, {"format": FORMAT, "sha256": sha256})


def test_a_packed_bomb_is_refused_without_memory(tmp_path):
    """A megabyte that inflates to a gigabyte: only a configuration's worth is ever inflated."""
    import zlib

    path = tmp_path / "a.nola"
    odd_adapter().pack(path)
    tensors = tensors_of(path)
    bomb = zlib.compress(b" " * 300_000_000, 9)
    tensors["about"] = np.frombuffer(bomb, np.uint8)
    rewrite(path, tensors)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(NolaEdgeError, match="compressed JSON"):
        Adapter.load(path)
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_a_foreign_file_is_no_packed_adapter(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.zeros(3, np.float32)})
    with pytest.raises(NolaEdgeError, match="not a packed adapter"):
        Adapter.load(tmp_path / "x")
    (tmp_path / "y").write_text(json.dumps({}))
    with pytest.raises(NolaEdgeError):
        Adapter.load(tmp_path / "y")
