"""The field ``tensors``: which stored tensor, or which lines of one, each module is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge import Adapter
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import (
    OTHERWISE,
    TensorPart,
    overlapping,
    parse_parts,
    tensors_field,
)
from nola_edge.errors import AdapterError
from tests.conftest import MODULES, snapshot, tiny_adapter
from tests.lora_folders import factors, write_lora

NAME = st.text("ab.[]:", min_size=1, max_size=6).filter(lambda name: not name.endswith("]"))
LINES = st.none() | st.tuples(st.integers(0, 99), st.integers(1, 99)).filter(lambda t: t[0] < t[1])
PARTS = st.builds(TensorPart, NAME, LINES)
RECORD = {"layers.0.q": "blocks.0.qkv.weight[0:24]", "layers.0.v": "blocks.0.qkv.weight[24:64]"}


@given(PARTS)
def test_what_is_written_is_read(part):
    assert TensorPart.parse(str(part)) == part


@given(st.text(max_size=12))
def test_any_text_is_a_part_or_none(text):
    part = TensorPart.parse(text)
    assert part is None or (str(part) == text and part.tensor)


@pytest.mark.parametrize(
    "text", ["", "a[1:1]", "a[2:1]", "a[01:2]", "a[-1:2]", "[0:1]", "a[0:]", "a]"]
)
def test_what_is_no_part(text):
    assert TensorPart.parse(text.removeprefix("a")) is None
    assert TensorPart.parse(text) is None


@given(st.lists(PARTS, max_size=6))
def test_parts_that_overlap(parts):
    named = {f"m{i}": part for i, part in enumerate(parts)}
    pairs = {
        (one, other)
        for one in named
        for other in named
        if one < other
        and named[one].tensor == named[other].tensor
        and named[one].overlaps(named[other])
    }
    found = overlapping(named)
    assert (found is None) == (not pairs)
    assert found is None or tuple(sorted(found)) in pairs
    if found:
        with pytest.raises(AdapterError, match="the same part of"):
            parse_parts({m: str(p) for m, p in named.items()}, "file")
    else:
        assert parse_parts({m: str(p) for m, p in named.items()}, "file") == named


def test_what_is_stored_otherwise():
    record = {"a": None, "b": None, "c": "x[0:2]"}
    parts = parse_parts(record, "file")
    assert parts["a"] == parts["b"] == OTHERWISE
    assert tensors_field(parts)["tensors"] == record
    assert StoredNames(parts).tensor("a.bias") == OTHERWISE


def with_record(folder, record):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": record}))
    return folder


def folders(tmp_path):
    tiny_adapter().save(tmp_path / "nola")
    return tmp_path / "nola", write_lora(tmp_path / "lora", factors())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"layers.0.k": "x"}, "names 'layers.0.k', which is neither a module nor"),
        ({"layers.0.q": 3}, "gives 'layers.0.q' 3, must give the name of a tensor"),
        ({"layers.0.q": "x[5:5]"}, r"gives 'layers.0.q' 'x\[5:5\]'"),
        ({"layers.0.q": ""}, "gives 'layers.0.q' ''"),
        ({"layers.0.q": "x[0:9]", "layers.0.v": "x[8:10]"}, "'layers.0.v' the same part of 'x'"),
        ({"layers.0.q": "x", "layers.0.v": "x[8:10]"}, "the same part of 'x'"),
        (["x"], "must be an object"),
        ("x", "must be an object"),
    ],
)
def test_records_that_are_refused(tmp_path, record, message):
    for folder in folders(tmp_path):
        with_record(folder, record)
        before = snapshot(tmp_path)
        with pytest.raises(AdapterError, match=message) as caught:
            load_adapter(folder)
        assert caught.value.field == "tensors"
        assert str(caught.value).isprintable()
        assert snapshot(tmp_path) == before


def test_every_method_reads_it(tmp_path):
    for folder in folders(tmp_path):
        adapter = load_adapter(with_record(folder, RECORD))
        assert {m: str(part) for m, part in adapter.tensors.items()} == RECORD


def test_folders_and_packed_files_keep_it(tmp_path):
    nola, _ = folders(tmp_path)
    adapter = Adapter.load(with_record(nola, RECORD))
    adapter.quantize(4).pack(tmp_path / "packed.nola")
    again = Adapter.load(tmp_path / "packed.nola")
    again.save(tmp_path / "unpacked")
    assert Adapter.load(tmp_path / "unpacked").tensors == again.tensors == adapter.tensors
    assert json.loads((tmp_path / "unpacked" / CONFIG_NAME).read_text())["tensors"] == RECORD


def test_an_adapter_of_other_modules_drops_it(tmp_path):
    nola, _ = folders(tmp_path)
    adapter = Adapter.load(with_record(nola, RECORD))
    first = next(iter(MODULES))
    assert Adapter(adapter.config, {first: adapter.modules[first]}).tensors == {}
    assert adapter.replace({}).tensors == adapter.tensors
