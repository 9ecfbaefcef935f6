"""Quantised tensors whose changes are amplified: merged, verified, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nola_edge.cli.types import ROUNDINGS as NAMED
from nola_edge.errors import ArgumentError
from nola_edge.files.gguf import GgufFile
from nola_edge.files.gguf_types import REQUANTIZED_TYPES
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.gguf.quantization import ROUNDINGS, numbers_of
from tests.cli.in_process import call, refused
from tests.conftest import snapshot
from tests.gguf.test_merge import MODULES, adapter_of, arrays_of, stored_name, wanted, write
from tests.reference import quantization as reference


def small_adapter():
    """Changes of a fraction of a step in four bits."""
    adapter = adapter_of()
    return adapter.replace({m: (c.alpha, c.beta / 4) for m, c in adapter.modules.items()})


def rows_of(path, name):
    with GgufFile.open(path) as file:
        info = file.tensors[name]
        data = np.empty((info.shape[0], info.nbytes // info.shape[0]), np.uint8)
        file.read_into(data.reshape(-1).data, info.start)
    return info.dtype, data


@pytest.mark.parametrize("outtype", [None, "Q4_0"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q8_0"])
def test_the_bytes_of_the_reference(kind, outtype, isa, tmp_path):
    """Where the type stays, and where it changes; rows are interleaved in one tensor."""
    adapter = small_adapter()
    keys = [module for module in MODULES if "layers.0" in module and "k_proj" in module]
    held = adapter.modules
    adapter = adapter.replace({m: (held[m].alpha, held[m].beta) for m in keys})
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    out = tmp_path / "out.gguf"
    report = merge_gguf(base, adapter, out, rounding="amplified", outtype=outtype)
    assert report.rounding == "amplified"
    assert report.types == (outtype or kind,)
    for module in keys:
        name = stored_name(module)
        before = reference.dequantize(*rows_of(base, name))
        merged = wanted(before, adapter, module)
        expected = reference.quantize_amplified(outtype or kind, before, merged)
        assert rows_of(out, name)[1].tobytes() == expected.tobytes()


def test_more_of_a_small_change_survives(tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("Q4_1"))
    kept = {
        rounding: merge_gguf(base, small_adapter(), tmp_path / rounding, rounding=rounding).overall
        for rounding in ROUNDINGS
    }
    assert kept["nearest"].part < 0.8
    assert kept["amplified"].part > kept["nearest"].part + 0.1
    assert kept["amplified"].noise > kept["nearest"].noise


def test_threads_and_windows_change_no_bit(tmp_path, monkeypatch):
    from nola_edge.gguf import requantize

    base = write(tmp_path / "base.gguf", arrays_of("Q5_0"))
    options = {"rounding": "amplified"}
    merge_gguf(base, small_adapter(), tmp_path / "one.gguf", num_threads=1, **options)
    monkeypatch.setattr(requantize, "_WINDOW_ELEMENTS", 700)
    merge_gguf(base, small_adapter(), tmp_path / "many.gguf", num_threads=3, **options)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("kind", "outtype"), [("Q4_1", None), ("Q8_0", "Q4_0"), ("F16", "Q8_0")])
def test_verify_learns_the_rounding_from_the_file(kind, outtype, rounding, tmp_path):
    base, out = write(tmp_path / "base.gguf", arrays_of(kind)), tmp_path / "out.gguf"
    merge_gguf(base, small_adapter(), out, outtype=outtype, rounding=rounding)
    assert verify_gguf(out, base, small_adapter()).identical
    assert verify_gguf(out, base, small_adapter(), rounding=rounding).identical
    other = next(name for name in ROUNDINGS if name != rounding)
    assert not verify_gguf(out, base, small_adapter(), rounding=other).identical
    name = stored_name(list(MODULES)[5])
    data = bytearray(out.read_bytes())
    with GgufFile.open(out) as file:
        data[file.tensors[name].start + 7] ^= 1
    out.write_bytes(data)
    found = verify_gguf(out, base, small_adapter()).differences
    assert [difference.tensor for difference in found] == [name]


def test_verify_of_files_without_the_merged_tensors(tmp_path):
    """Or with others in their places: the rounding cannot be learnt, and nothing else is hidden."""
    base = write(tmp_path / "base.gguf", arrays_of("Q4_1"))
    arrays = arrays_of("Q4_1")
    names = [stored_name(module) for module in MODULES]
    arrays[names[0]] = np.ones((3, 5), np.float32)
    for name in names[1:]:
        del arrays[name]
    found = verify_gguf(write(tmp_path / "out.gguf", arrays), base, small_adapter()).differences
    assert {d.tensor: d.problem for d in found} == {
        names[0]: "shape",
        **dict.fromkeys(names[1:], "missing"),
    }


def test_a_dropped_adapter_is_still_called_that(tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("Q4_1"))
    for rounding in (None, *ROUNDINGS):
        report = verify_gguf(base, base, adapter_of(), rounding=rounding)
        assert {d.fault for d in report.differences} == {"dropped"}


@pytest.mark.parametrize("rounding", ["stochastic", "", None, 3, "Nearest\n"])
def test_an_unknown_rounding_is_refused(rounding, tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("Q4_1"))
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match="must be one of nearest, amplified") as caught:
        merge_gguf(base, adapter_of(), tmp_path / "out.gguf", rounding=rounding)
    assert caught.value.field == "rounding"
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before
    if rounding is not None:
        with pytest.raises(ArgumentError, match="must be one of"):
            verify_gguf(base, base, adapter_of(), rounding=rounding)


@pytest.mark.parametrize(("kind", "outtype"), [("F16", None), ("Q4_1", "F16"), ("F32", "BF16")])
def test_a_rounding_is_refused_where_nothing_is_quantised(kind, outtype, tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match="no merged tensor is quantised") as caught:
        merge_gguf(base, adapter_of(), tmp_path / "out.gguf", outtype=outtype, rounding="amplified")
    assert caught.value.field == "rounding"
    assert snapshot(tmp_path) == before
    merge_gguf(base, adapter_of(), tmp_path / "out.gguf", outtype=outtype, rounding="nearest")


def test_the_command_line(tmp_path, tiny):
    base, adapter, out = tmp_path / "base.gguf", tmp_path / "small", tmp_path / "out.gguf"
    write(base, arrays_of("Q4_1"))
    small_adapter().save(adapter)
    done = call("merge", base, adapter, "-o", out)
    assert "To keep more, round with --rounding amplified, give merged" in done.stderr
    done = call("merge", base, adapter, "-o", out, "--force", "--rounding", "amplified", "--json")
    assert "--rounding" not in done.stderr  # no advice to use what is used
    assert json.loads(done.stdout)["rounding"] == "amplified"
    assert call("verify", out, base, adapter).returncode == 0
    assert call("verify", out, base, adapter, "--rounding", "amplified").returncode == 0
    assert call("verify", out, base, adapter, "--rounding", "nearest").returncode == 1
    before = snapshot(tmp_path)
    said = refused("merge", base, adapter, "-o", tmp_path / "x.gguf", "--rounding", "stochastic")
    assert "'nearest', 'amplified'" in said
    checkpoint = [tiny[0], tiny[1], "--rounding", "amplified"]
    assert "--rounding is for GGUF files" in refused("merge", *checkpoint, "-o", tmp_path / "x")
    assert "--rounding is for GGUF files" in refused("verify", tiny[0], *checkpoint)
    assert snapshot(tmp_path) == before


def test_options_name_what_there_is():
    assert NAMED == ROUNDINGS


def test_the_advice_after_an_amplified_merge(tmp_path, monkeypatch):
    monkeypatch.setattr("nola_edge.gguf.survival.Survival.part", 0.5)
    base, adapter = write(tmp_path / "base.gguf", arrays_of("Q4_1")), tmp_path / "adapter"
    adapter_of().save(adapter)
    said = call("merge", base, adapter, "-o", tmp_path / "o.gguf", "--rounding", "amplified").stderr
    assert "amplified" not in said
    assert "--outtype q8_0 or f16), or load the adapter beside the base" in said


def test_rows_that_nothing_changes_keep_their_bytes(tmp_path):
    arrays = arrays_of("Q4_1")
    rng = np.random.default_rng(3)
    for module in MODULES:
        kind, shape, data = arrays[stored_name(module)]
        codes = np.frombuffer(data, np.uint8).reshape(-1, 20).copy()
        codes[:, 4:] = rng.integers(0, 256, codes[:, 4:].shape)  # as no quantiser chooses them
        arrays[stored_name(module)] = (kind, shape, codes.tobytes())
    base = write(tmp_path / "base.gguf", arrays)
    fresh = adapter_of()
    fresh = fresh.replace({m: (c.alpha, c.beta * 0) for m, c in fresh.modules.items()})
    merge_gguf(base, fresh, tmp_path / "out.gguf", rounding="amplified")
    assert (tmp_path / "out.gguf").read_bytes() == base.read_bytes()


def test_numbers_are_the_references(isa):
    rng = np.random.default_rng(2)
    values = rng.standard_normal((4, 64)).astype(np.float32)
    for kind in REQUANTIZED_TYPES:
        rows = numbers_of(kind).encode(values)
        assert rows.tobytes() == reference.quantize(kind, values).tobytes()
        steps = np.abs(numbers_of(kind).decode(rows) - values) / numbers_of(kind).spacing(rows)
        assert steps.max() <= 1.01
