"""The header check: everything the library accepts, except what can be read in two ways."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from nola_edge.errors import ChangedError, FormatError
from nola_edge.files.safetensors import MAX_HEADER_BYTES, SafetensorsFile
from tests.conftest import snapshot, write_safetensors


def encode(header, data=b"", length=None, padding=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += padding
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SIZES = "not a list of at most 64 sizes"
EIGHT = b"\0" * 8
BAD = {
    "empty": (b"", "too few"),
    "short": (b"\1\0\0", "too few"),
    "header beyond the file": (encode({"a": entry()}, EIGHT, length=10_000), "truncated"),
    "huge header": (encode({"a": entry()}, EIGHT, length=2**63), "truncated"),
    "not an object": (encode([]), "does not begin with"),
    "leading space": (encode(b' {"a":1}'), "does not begin with"),
    "byte order mark": (encode(b'\xef\xbb\xbf{"a":1}'), "begins with a byte order mark"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (encode(b"{nonsense"), "not valid JSON"),
    "deep": (encode(b'{"a":' * 100_000), "nested too deeply"),
    "long number": (
        encode(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
        "a.shape[0]: Infinity is not a JSON number, nor is any beyond",
    ),
    "NaN": (encode(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), "NaN is not"),
    "duplicate tensor": (
        encode(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            EIGHT,
        ),
        "duplicate key 'a'",
    ),
    "duplicate field": (
        encode(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
        "duplicate key 'dtype'",
    ),
    "metadata not strings": (
        encode({"__metadata__": {"a": 1}, "a": entry()}, EIGHT),
        "__metadata__: must map strings",
    ),
    "missing field": (encode({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "exactly dtype"),
    "extra field": (encode({"a": {**entry(), "x": 1}}, EIGHT), "exactly dtype"),
    "unknown dtype": (encode({"a": entry("F31")}, EIGHT), "dtype 'F31' is unknown"),
    "dtype no string": (encode({"a": entry(3)}, EIGHT), "dtype '3' is unknown"),
    "negative size": (encode({"a": entry(shape=(-2,))}, EIGHT), SIZES),
    "boolean size": (
        encode({"a": entry(shape=(True, 2))}, EIGHT),
        SIZES,
    ),
    "float size": (encode({"a": entry(shape=(2.0,))}, EIGHT), SIZES),
    "65 dimensions": (encode({"a": entry(shape=(1,) * 64 + (2,))}, EIGHT), SIZES),
    "three offsets": (encode({"a": entry(offsets=(0, 4, 8))}, EIGHT), "not two offsets"),
    "backwards": (encode({"a": entry(offsets=(8, 0))}, EIGHT), "run backwards"),
    "shape that lies": (encode({"a": entry(shape=(3,))}, EIGHT), "does not take the 8 bytes"),
    "overflowing shape": (
        encode({"a": entry(shape=(2**62, 2**62, 2**62))}, EIGHT),
        "does not take",
    ),
    "overlap": (
        encode({"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))}, EIGHT),
        "b: overlaps",
    ),
    "hole": (
        encode({"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(offsets=(8, 16))}, EIGHT * 2),
        "4 bytes before it",
    ),
    "hole at the start": (encode({"a": entry(offsets=(8, 16))}, EIGHT * 2), "8 bytes before it"),
    "truncated data": (encode({"a": entry()}, EIGHT[:5]), "it is truncated"),
    "trailing bytes": (encode({"a": entry()}, EIGHT + b"x"), "1 bytes at the end"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_one_printable_line(tmp_path, case):
    data, message = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    before = snapshot(tmp_path)
    with pytest.raises(FormatError) as caught:
        SafetensorsFile.open(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(path))
    assert text.isprintable()
    assert snapshot(tmp_path) == before


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "absent"):
        with pytest.raises(FormatError):
            SafetensorsFile.open(path)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
sizes = st.lists(st.integers(0, 4), max_size=3)


@given(
    st.dictionaries(names.filter(lambda n: n != "__metadata__"), sizes, max_size=4),
    st.sampled_from(["F32", "BF16", "U8", "F64", "BOOL", "F8_E4M3", "C64"]),
    st.integers(-2, 2),
    st.integers(-1, 1),
    st.integers(0, 9),
)
def test_agrees_with_the_library(tmp_path, shapes, dtype, shift, extra, padding):
    """Valid files and slightly wrong ones: both accept, or both refuse."""
    width = {"F32": 4, "BF16": 2, "U8": 1, "F64": 8, "BOOL": 1, "F8_E4M3": 1, "C64": 8}[dtype]
    header, offset = {}, 0
    for index, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape, dtype=np.int64)) * width
        begin = max(0, offset + (shift if index == 1 else 0))
        header[name] = entry(dtype, shape, (begin, begin + count))
        offset = begin + count
    data = encode(header, b"\1" * max(0, offset + extra), padding=b" " * padding)
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    try:
        deserialize(data)
        accepted = True
    except SafetensorError:
        accepted = False
    try:
        with SafetensorsFile.open(path) as file:
            ours = True
            assert list(file.tensors) == list(header)
    except FormatError:
        ours = False
    assert ours == accepted


def test_arrays_are_read_only_views_of_any_alignment(tmp_path):
    path = tmp_path / "f.safetensors"
    tensors = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "c": np.ones((2, 2), ml_dtypes.bfloat16),
        "d": np.zeros((0, 5), np.float16),
    }
    write_safetensors(path, tensors)
    with SafetensorsFile.open(path) as file:
        views = {name: file.array(name) for name in tensors}
    for name, values in tensors.items():
        assert views[name].dtype == values.dtype
        np.testing.assert_array_equal(views[name], values)
        assert not views[name].flags.writeable


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "f.safetensors"
    write_safetensors(path, {"a": np.zeros(4096, np.float32)})
    with SafetensorsFile.open(path) as file:
        file.check_unchanged()
        os.utime(path, ns=(1, 1))
        with pytest.raises(ChangedError, match="changed while"):
            file.check_unchanged()
    with SafetensorsFile.open(path) as file:
        os.truncate(path, 100)
        with pytest.raises(ChangedError, match="became shorter"):
            file.read_into(memoryview(bytearray(4096)), 80)
    with _replaced(path) as file, pytest.raises(ChangedError):
        file.check_unchanged()


def _replaced(path):
    write_safetensors(path, {"a": np.zeros(4, np.float32)})
    file = SafetensorsFile.open(path)
    other = path.with_suffix(".new")
    write_safetensors(other, {"a": np.zeros(4, np.float32)})
    other.replace(path)
    return file


def test_a_header_above_the_formats_limit(tmp_path):
    """The file is large enough for it, without taking the disk."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(FormatError, match=f"header claims {MAX_HEADER_BYTES + 1} bytes"):
        SafetensorsFile.open(path)
