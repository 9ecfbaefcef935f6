"""Stored tensors that hold several modules: the bits of splitting, merging and joining again."""

from __future__ import annotations

import json
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import ArgumentError, MismatchError
from nola_edge.export.lora import export_lora
from nola_edge.merge import windows
from nola_edge.merge.low_rank import Term, make_update
from nola_edge.merge.target import Target
from tests.conftest import load_all, snapshot, write_safetensors
from tests.lora_folders import factors, lora_config, with_magnitudes, write_lora

F = np.float32
SIZES = {"q": 24, "k": 8, "v": 8}
WIDTH = 70


def layout(sizes, gap=0):
    """Return module -> lines of the tensor ``qkv.weight``, with some of nobody's between them."""
    ends = np.cumsum([0, *(size + gap for size in sizes.values())]).tolist()
    return {m: (a, b - gap) for m, (a, b) in zip(sizes, pairwise(ends), strict=True)}


def write_bases(folder, lines, total, width, dtype, *, transposed=False, seed=0):
    """Write the weights as one tensor, and every module's as its own; return both paths."""
    weight = np.random.default_rng(seed).standard_normal((total, width)).astype(dtype)
    weight[:, 0] = -0.0  # which adding nothing would turn into 0
    parts = {f"{m}.weight": weight[slice(*ends)] for m, ends in lines.items()}
    tensors = {"qkv.weight": weight, **parts}
    turned = {n: np.ascontiguousarray(t.T if transposed else t) for n, t in tensors.items()}
    other = {"other.weight": np.ones((3, 4), dtype)}
    write_safetensors(folder / "joined.safetensors", {"qkv.weight": turned["qkv.weight"], **other})
    write_safetensors(folder / "split.safetensors", {n: turned[n] for n in parts} | other)
    return folder / "joined.safetensors", folder / "split.safetensors"


def joined(before, split, lines, *, transposed=False):
    """Return the tensor of `before` with the modules of `split` in it."""
    whole = np.array(before.T if transposed else before)
    for module, ends in lines.items():
        part = split[f"{module}.weight"]
        whole[slice(*ends)] = part.T if transposed else part
    return np.ascontiguousarray(whole.T if transposed else whole)


def rename_of(lines):
    return {module: f"qkv[{start}:{stop}]" for module, (start, stop) in lines.items()}


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    gap=st.integers(0, 3),
    width=st.integers(1, 70),
    kind=st.sampled_from(["LoRA", "DoRA", "two LoRAs", "NOLA"]),
    transposed=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    small=st.booleans(),
)
def test_the_bits_of_split_weights(
    tmp_path_factory, sizes, gap, width, kind, transposed, dtype, small
):
    tmp_path = tmp_path_factory.mktemp("parts")
    lines = layout({f"m{i}": size for i, size in enumerate(sizes)}, gap)
    total = max(stop for _, stop in lines.values()) + gap
    shapes = {m: (stop - start, width) for m, (start, stop) in lines.items()}
    bases = write_bases(tmp_path, lines, total, width, dtype, transposed=transposed)
    if kind == "NOLA":
        adapters = trained_adapter(shapes, r=3, num_basis=5, seed=1, fan_in_fan_out=transposed)
    else:
        adapters = []
        for seed in range(2 if kind == "two LoRAs" else 1):
            tensors = factors(shapes, seed=seed)
            if kind == "DoRA":
                tensors = with_magnitudes(tensors)
            folder = write_lora(
                tmp_path / f"l{seed}", tensors, use_dora=kind == "DoRA", fan_in_fan_out=transposed
            )
            adapters.append((folder, 1.0 if kind == "DoRA" else 0.7))
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(windows, "BLOCK_BYTES", 60)
            patch.setattr(windows, "_STRIP_BYTES", 40)
            patch.setattr(windows, "_ALIGNMENT", 3)
        with ne.open_merged(bases[0], adapters, rename=rename_of(lines)) as found:
            got = found["qkv.weight"]
    with ne.open_merged(bases[1], adapters) as split:
        wanted = joined(load_all(bases[0])["qkv.weight"], split, lines, transposed=transposed)
    assert got.tobytes() == wanted.tobytes()


@given(transposed=st.booleans(), start=st.integers(0, 47), size=st.integers(1, 48))
def test_as_one_product(transposed, start, size):
    """What the audit measures: the factors of all segments, side by side."""
    lines = layout(SIZES, gap=2)
    shapes = {m: (stop - begin, WIDTH) for m, (begin, stop) in lines.items()}
    adapter = trained_adapter(shapes, r=3, num_basis=5, seed=1)
    shape = (WIDTH, 48) if transposed else (48, WIDTH)
    terms = [
        Term(adapter, m, 0.7, Target.part("qkv", shape, transposed, ends))
        for m, ends in lines.items()
    ]
    dense = np.zeros((48, WIDTH))
    for module, ends in lines.items():
        a, b = adapter.factors(module, *shapes[module])
        dense[slice(*ends)] = 0.7 * adapter.scaling * b.astype(float) @ a
    stop = min(start + size, 48)
    cols = (start, stop) if transposed else (3, 60)
    rows = (3, 60) if transposed else (start, stop)
    update = make_update(terms, shape, cols)
    found = update.scaling * update.left(*rows) @ update.right
    wanted = (dense.T if transposed else dense)[slice(*rows), slice(*cols)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def case(tmp_path):
    """Bases, joined and split, and a LoRA that records where its modules are."""
    lines = layout(SIZES, gap=2)
    bases = write_bases(tmp_path, lines, 48, WIDTH, np.float16)
    shapes = {m: (size, WIDTH) for m, size in SIZES.items()}
    recorded = {m: f"qkv.weight[{a}:{b}]" for m, (a, b) in lines.items()}
    folder = write_lora(tmp_path / "lora", factors(shapes), tensors=recorded)
    return bases, folder, lines


def test_every_way_of_merging(case, tmp_path):
    """Written, each, opened, verified, switched: the same bytes; a record needs no rename."""
    (base, split), folder, lines = case
    ne.merge_checkpoint(base, folder, tmp_path / "out.safetensors")
    assert ne.verify_checkpoint(tmp_path / "out.safetensors", base, folder).identical
    got = load_all(tmp_path / "out.safetensors")
    with ne.open_merged(split, folder_without_record(folder, tmp_path)) as parts:
        wanted = joined(load_all(base)["qkv.weight"], parts, lines)
    assert got["qkv.weight"].tobytes() == wanted.tobytes()
    ne.merge_each(base, {"a": folder, "b": [(folder, 2.0)]}, tmp_path / "each", num_threads=2)
    each = load_all(tmp_path / "each/a.safetensors")
    assert each["qkv.weight"].tobytes() == wanted.tobytes()
    arrays = {name: array.copy() for name, array in load_all(base).items()}
    switch = ne.ArraySwitch(arrays, base)
    switch.add("a", folder)
    switch.use("a")
    assert arrays["qkv.weight"].tobytes() == wanted.tobytes()
    switch.use(None)
    assert arrays["qkv.weight"].tobytes() == load_all(base)["qkv.weight"].tobytes()


def folder_without_record(folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in folder.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    (plain / CONFIG_NAME).write_text(json.dumps(lora_config()))
    return plain


def test_a_base_that_has_the_modules_own_names(case, tmp_path):
    """transformers can save a model as it is in memory: the record is of no use then."""
    (base, split), folder, lines = case
    with ne.open_merged(base, folder) as one, ne.open_merged(split, folder) as other:
        assert other["q.weight"].tobytes() == one["qkv.weight"][slice(*lines["q"])].tobytes()
    write_safetensors(tmp_path / "some.safetensors", {"q.weight": load_all(split)["q.weight"]})
    message = r"3 of 3 modules of .* the first is 'q', stored as 'qkv.weight'"
    refused(tmp_path / "some.safetensors", folder, tmp_path, message)


def test_suggestions_for_a_base_that_has_the_modules_own_names(case, tmp_path):
    (_, split), folder, _ = case
    own = load_all(split)
    base = tmp_path / "renamed.safetensors"
    write_safetensors(base, {"tower.v.weight": own.pop("v.weight"), **own})
    refused(base, folder, tmp_path, "All would have one with --rename v=tower.v; check")
    with ne.open_merged(base, folder, rename=["v=tower.v"]) as found:
        wanted = dict(found)
    with ne.open_merged(split, folder) as found:
        assert wanted["tower.v.weight"].tobytes() == found["v.weight"].tobytes()


def test_an_adapter_of_a_part_and_one_of_the_whole(tmp_path):
    """Each line has the ranks of those that change it, concatenated in their order."""
    lines = layout(SIZES)
    base, split = write_bases(tmp_path, lines, 40, WIDTH, np.float32)
    whole = factors({"qkv": (40, WIDTH)}, seed=1)
    pieces = {}
    for module, ends in lines.items():
        stem = f"{PREFIX}{module}.lora_"
        pieces[stem + "A.weight"] = whole[PREFIX + "qkv.lora_A.weight"]
        pieces[stem + "B.weight"] = whole[PREFIX + "qkv.lora_B.weight"][slice(*ends)]
    part = write_lora(tmp_path / "part", factors({"k": (8, WIDTH)}, seed=2))
    everything = write_lora(tmp_path / "everything", whole)
    three = write_lora(tmp_path / "three", pieces)
    rename = {"k": rename_of(lines)["k"]}
    with ne.open_merged(base, [(part, 0.5), (everything, 1.0)], rename=rename) as found:
        got = found["qkv.weight"]
    alone = {}
    for module in lines:
        adapters = [(part, 0.5), (three, 1.0)] if module == "k" else [(three, 1.0)]
        with ne.open_merged(split, adapters) as opened:
            alone[f"{module}.weight"] = opened[f"{module}.weight"]
    assert got.tobytes() == joined(load_all(base)["qkv.weight"], alone, lines).tobytes()


def test_what_went_wrong_in_a_part_is_found(case, tmp_path):
    """The audit measures each part by itself."""
    (base, _), folder, lines = case
    tensors = load_all(base)
    with ne.open_merged(base, folder) as right:
        half = np.array(right["qkv.weight"])
    write_safetensors(tmp_path / "right.safetensors", {**tensors, "qkv.weight": half})
    half[slice(*lines["q"])] = tensors["qkv.weight"][slice(*lines["q"])]
    write_safetensors(tmp_path / "half.safetensors", {**tensors, "qkv.weight": half})
    report = ne.verify_checkpoint(tmp_path / "right.safetensors", base, folder, tensors_only=True)
    assert report.identical
    report = ne.verify_checkpoint(tmp_path / "half.safetensors", base, folder, tensors_only=True)
    (difference,) = report.differences
    assert (difference.module, difference.lines) == ("q", tuple(lines["q"]))
    assert (difference.fault, difference.part) == ("dropped", 0)
    report = ne.verify_checkpoint(base, base, folder, tensors_only=True)
    assert {d.module: d.fault for d in report.differences} == dict.fromkeys(lines, "dropped")


def test_export_keeps_the_modules(case, tmp_path):
    """The LoRA of a NOLA adapter has its modules and its record, and merges to the same bits."""
    (base, _), _, lines = case
    shapes = {m: (size, WIDTH) for m, size in SIZES.items()}
    adapter = trained_adapter(shapes, r=3, num_basis=5, seed=1)
    recorded = {m: f"qkv.weight[{a}:{b}]" for m, (a, b) in lines.items()}
    adapter.save(tmp_path / "nola")
    path = tmp_path / "nola" / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": recorded}))
    export_lora(tmp_path / "nola", base, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / CONFIG_NAME).read_text())["tensors"] == recorded
    with (
        ne.open_merged(base, tmp_path / "nola") as one,
        ne.open_merged(base, tmp_path / "exported") as other,
    ):
        assert one["qkv.weight"].tobytes() == other["qkv.weight"].tobytes()


def refused(base, adapter, tmp_path, message, error=MismatchError, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message) as caught:
        ne.merge_checkpoint(base, adapter, tmp_path / "out.safetensors", **options)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_two_modules_of_one_line(case, tmp_path):
    (base, _), folder, _ = case
    plain = folder_without_record(folder, tmp_path)
    overlapping = {"q": "qkv[0:24]", "k": "qkv[23:31]", "v": "qkv[36:44]"}
    refused(base, plain, tmp_path, "both q and k", rename=overlapping)
    same = {"q": "qkv", "k": "qkv", "v": "qkv"}
    refused(base, plain, tmp_path, "both .*--rename NEW=OLD", rename=same)


def test_weights_that_are_no_part_of_one_tensor(case, tmp_path):
    """The record says so; a rule of the caller's goes before it."""
    (base, split), folder, lines = case
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": {"q": None, "k": None}}))
    for file in (base, split):
        refused(file, folder, tmp_path, "2 modules of .* 'q', .* in another order, as the adapter")
    with ne.open_merged(base, folder, rename=rename_of(lines)) as found:
        assert found["qkv.weight"].shape == (48, WIDTH)


def test_lines_that_are_not_there(case, tmp_path):
    (base, _), folder, _ = case
    plain = folder_without_record(folder, tmp_path)
    beyond = {"q": "qkv[0:24]", "k": "qkv[24:32]", "v": "qkv[41:49]"}
    refused(base, plain, tmp_path, "has 48 outputs.* 41 to 49", rename=beyond)


def test_parts_of_another_size(case, tmp_path):
    (base, _), folder, _ = case
    plain = folder_without_record(folder, tmp_path)
    other = {"q": "qkv[0:23]", "k": "qkv[24:32]", "v": "qkv[36:44]"}
    refused(base, plain, tmp_path, "q: is 23 x 70 here", rename=other)


def test_rows_for_one_and_columns_for_another(tmp_path):
    lines = {"q": (0, 40)}
    base, _ = write_bases(tmp_path, lines, 80, 80, np.float32)
    rows = write_lora(tmp_path / "rows", factors({"q": (40, 80)}))
    cols = write_lora(tmp_path / "cols", factors({"q": (40, 80)}), fan_in_fan_out=True)
    message = "disagree about fan_in_fan_out"
    refused(base, [(rows, 1.0), (cols, 1.0)], tmp_path, message, rename=rename_of(lines))


def test_dora_beside_another_adapter(tmp_path):
    """In other lines of its tensor DoRA is alone all the same; in its own it must be."""
    lines = layout(SIZES)
    base, _ = write_bases(tmp_path, lines, 40, WIDTH, np.float32)
    dora = with_magnitudes(factors({"q": (24, WIDTH)}))
    dora = write_lora(tmp_path / "dora", dora, use_dora=True)
    apart = write_lora(tmp_path / "apart", factors({"k": (8, WIDTH)}))
    whole = write_lora(tmp_path / "whole", factors({"qkv": (40, WIDTH)}))
    names = rename_of(lines)
    rename = {"q": names["q"], "k": names["k"]}
    with ne.open_merged(base, [(dora, 1.0), (apart, 1.0)], rename=rename) as found:
        both = np.array(found["qkv.weight"])
    with ne.open_merged(base, dora, rename={"q": names["q"]}) as found:
        assert both[slice(*lines["q"])].tobytes() == found["qkv.weight"][:24].tobytes()
    adapters = [(dora, 1.0), (whole, 1.0)]
    refused(base, adapters, tmp_path, "DoRA", ArgumentError, rename={"q": names["q"]})


def test_biases_of_a_part_are_not_merged(tmp_path):
    lines = layout(SIZES)
    base, _ = write_bases(tmp_path, lines, 40, WIDTH, np.float32)
    write_safetensors(base, {**load_all(base), "qkv.bias": np.zeros(40, F)})
    tensors = {**factors({"q": (24, WIDTH)}), f"{PREFIX}q.base_layer.bias": np.zeros(24, F)}
    folder = write_lora(tmp_path / "l", tensors, bias="lora_only")
    message = r"qkv\.bias: holds several modules, and .* has 'q\.bias'"
    refused(base, folder, tmp_path, message, rename={"q": rename_of(lines)["q"]})
