"""Whatever JSON is read can be written again, and whatever is written can be read, by anyone."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from nola_edge.errors import FormatError, NolaEdgeError
from nola_edge.files.safetensors import SafetensorsFile, encode_header
from nola_edge.files.strict_json import MAX_DEPTH, dumps, encode, loads
from tests.conftest import snapshot

characters = st.one_of(st.characters(), st.sampled_from('\ud800\udfff😀\0\n\\"é'))
texts = st.text(characters, max_size=5)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**307, -(10**308) + 1, 10**308, -(10**308), 10**400, 10**4000]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)), max_leaves=8
)


def said_by(call, *arguments, **options):
    """Return what a call gives, or the line in which it refuses."""
    try:
        return call(*arguments, **options), None
    except NolaEdgeError as error:
        return None, str(error)


def is_plain(value):
    """Tell whether a value means the same to every reader, in the test's own words."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(child) for key, child in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or len(str(abs(value))) <= 308


@given(values)
def test_what_is_written_is_read_again(value):
    for layout in ({}, {"indent": 2, "sort_keys": True}, {"ensure_ascii": False}):
        data, refusal = said_by(encode, value, **layout)
        assert (refusal is None) == is_plain(value)
        if refusal is None:
            assert loads(data, file="f") == value


@given(values)
def test_what_is_read_can_be_written_again(value):
    text = json.dumps(value).replace("Infinity", "1e400")
    read, refusal = said_by(loads, text.encode(), file="f")
    assert (refusal is None) == is_plain(value)
    if refusal is None:
        assert read == value
        assert loads(encode(read), file="f") == value
    else:
        assert refusal.startswith("f: ")
        assert refusal.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": [1, 1e400]}}', "f: a.b[1]: Infinity is not a JSON number, nor is any beyond"),
        ('{"a": -1e400}', "f: a: -Infinity is not a JSON number"),
        ('{"a": NaN}', "f: a: NaN is not a JSON number"),
        ('{"a": ' + "9" * 309 + "}", "f: a: is a number of more than 308 digits"),
        ('{"a": ' + "9" * 3_000_000 + "}", "f: a: Infinity is not a JSON number"),
        ('{"a": "\\ud800"}', "f: a: is '\\ud800', which contains half of a surrogate pair"),
        (
            '{"a": {"\\udfff": 1}}',
            "f: a: a key of it is '\\udfff', which contains half of a surrogate pair",
        ),
        ("\ufeff{}", "f: is not valid JSON: begins with a byte order mark; save it without"),
        ("[" * 65 + "]" * 65, "f: JSON is nested too deeply, more than 64 levels"),
        ("[" * 10**6, "f: JSON is nested too deeply"),
    ],
)
def test_a_refusal_names_the_place(text, message):
    with pytest.raises(FormatError) as caught:
        loads(text.encode(), file="f")
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("unknown", [{1: 2}, {None: 1}, [{1, 2}], {"a": b"x"}, {"a": object()}])
def test_what_python_knows_and_json_does_not(unknown):
    with pytest.raises(FormatError):
        encode(unknown)


def test_depth_is_limited_alike_both_ways():
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert encode(loads(deepest.encode(), file="f")) == deepest.encode()
    circle = []
    circle.extend([circle, circle])
    with pytest.raises(FormatError, match="nested too deeply"):
        encode(circle)


def test_a_number_that_is_not_finite_is_never_printed():
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"a": math.nan})


@given(st.dictionaries(texts, texts, max_size=3), st.lists(texts, unique=True, max_size=3))
def test_a_header_is_one_for_every_reader(tmp_path_factory, metadata, names):
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    entries = [(name, "U8", (1,), 1) for name in names]
    data, refusal = said_by(encode_header, entries, metadata)
    assert (refusal is None) == is_plain([metadata, names])
    if refusal is None:
        path.write_bytes(data + bytes(len(names)))
        with SafetensorsFile.open(path) as file, safe_open(path, "np") as theirs:
            assert set(file.tensors) == set(theirs.keys()) == set(names)
            assert file.metadata == (theirs.metadata() or {}) == metadata


def test_metadata_with_half_a_character_is_refused(tmp_path):
    text = rb'{"__metadata__":{"a":"\ud800"}}'
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    before = snapshot(tmp_path)
    with pytest.raises(
        FormatError, match=r"__metadata__\.a: is '.ud800', which contains half of a surrogate pair"
    ):
        SafetensorsFile.open(tmp_path / "x.safetensors")
    assert snapshot(tmp_path) == before
