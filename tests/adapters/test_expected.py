"""What a packed adapter says of the results that its publisher expects."""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters import ExpectedResult
from nola_edge.adapters.packed import FORMAT, contents_hash
from nola_edge.adapters.peft_folder import write_tensors
from nola_edge.errors import AdapterError, ArgumentError, NolaEdgeError
from nola_edge.files.content_hash import hash_of_list
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.tensors import ArrayTensor
from tests.conftest import snapshot, tiny_adapter

FILES = {"config.json": "0" * 64, "sub/tokenizer.txt": "1" * 64}
RESULTS = (
    ExpectedResult("base", "folder", "a" * 32, hash_of_list(FILES), FILES),
    ExpectedResult("base of one file", "safetensors", "b" * 32, "2" * 64),
    ExpectedResult("base.gguf", "gguf", "c" * 32, "3" * 64),
)


def about_of(path):
    with SafetensorsFile.open(path) as file:
        return json.loads(zlib.decompress(file.read("about").tobytes()))


def write_edited(path, edited, about):
    """Write a packed adapter once more with other JSON, and a hash that is right for it."""
    with SafetensorsFile.open(path) as file:
        arrays = {name: file.read(name) for name in file.tensors}
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    arrays["about"] = np.frombuffer(zlib.compress(text), np.uint8)
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_tensors(edited, tensors, {"format": FORMAT, "sha256": contents_hash(tensors)})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "a.nola"
    tiny_adapter().pack(path, expect=RESULTS)
    return path


def test_what_is_packed_is_read_again(packed, tmp_path):
    adapter = ne.Adapter.load(packed)
    assert adapter.expected == RESULTS
    assert about_of(packed)["expected"][0] == {
        "name": "base",
        "kind": "folder",
        "base_fingerprint": "a" * 32,
        "sha256": hash_of_list(FILES),
        "files": FILES,
    }
    assert "files" not in about_of(packed)["expected"][1]
    adapter.pack(tmp_path / "again.nola")
    assert (tmp_path / "again.nola").read_bytes() == packed.read_bytes()


def test_one_without_is_written_as_before(tmp_path):
    tiny_adapter().pack(tmp_path / "a.nola")
    assert about_of(tmp_path / "a.nola").keys() == {"config", "modules"}
    assert ne.Adapter.load(tmp_path / "a.nola").expected == ()


def test_the_hash_of_a_folder_is_that_of_its_list():
    lines = "".join(f"{sha256}  ./{path}\n" for path, sha256 in FILES.items())
    assert RESULTS[0].sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_a_result_takes_the_place_of_an_earlier_one_of_its_name(packed, tmp_path):
    new = RESULTS[2]._replace(sha256="9" * 64)
    ne.Adapter.load(packed).pack(tmp_path / "b.nola", expect=[new])
    assert ne.Adapter.load(tmp_path / "b.nola").expected == (*RESULTS[:2], new)


def test_an_adapter_made_of_it_expects_nothing(packed, tmp_path):
    adapter = ne.Adapter.load(packed)
    module, held = next(iter(adapter.modules.items()))
    assert adapter.replace({module: (2 * held.alpha, held.beta)}).expected == ()
    assert adapter.quantize(8).expected == ()
    adapter.save(tmp_path / "folder")
    assert ne.Adapter.load(tmp_path / "folder").expected == ()


def edit(entries, field, value):
    """Return entries of which the first, or the whole, is another."""
    first = dict(entries[0])
    if field == "drop":
        del first[value]
    elif field == "add":
        first[value] = 1
    elif field == "twice":
        return [*entries, entries[0]]
    elif field == "many":
        return [{**entries[1], "name": f"{number}"} for number in range(65)]
    elif field == "all":
        return value
    elif field == "first":
        return [value]
    elif field == "path":
        files = {value: "0" * 64}
        first |= {"files": files, "sha256": hash_of_list(files)}
    else:
        first[field] = value
    return [first, *entries[1:]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("all", {}, r"expected: is \{\}, must be a list"),
        ("all", None, r"expected: is None, must be a list"),
        ("first", 3, r"expected\[0\]: is 3, must be an object"),
        ("kind", "zip", r"expected\[0\]\.kind: is 'zip', must be one of folder, safetensors, gguf"),
        ("kind", ["folder"], r"expected\[0\]\.kind: is \['folder'\]"),
        ("kind", "gguf", r"expected\[0\]\.files: is not understood"),
        ("drop", "name", r"expected\[0\]\.name: is missing"),
        ("drop", "files", r"expected\[0\]\.files: is missing"),
        ("drop", "kind", r"expected\[0\]\.kind: is None"),
        ("add", "sha512", r"expected\[0\]\.sha512: is not understood"),
        ("name", "", r"expected\[0\]\.name: is '', must be printable text of 1 to 200"),
        ("name", "a\nb", r"expected\[0\]\.name: is 'a"),
        ("name", "a" * 201, r"expected\[0\]\.name: is 'aa"),
        ("name", 7, r"expected\[0\]\.name: is 7"),
        ("base_fingerprint", "a" * 31, r"expected\[0\]\.base_fingerprint: is 'a.*32 hexadecimal"),
        ("base_fingerprint", "A" * 32, r"expected\[0\]\.base_fingerprint: is 'A.*small letters"),
        ("sha256", "0" * 64, r"expected\[0\]\.sha256: is '0.*must be .*, which its files have"),
        ("sha256", "g" * 64, r"expected\[0\]\.sha256: is 'g.*must be 64 hexadecimal digits"),
        ("sha256", 0, r"expected\[0\]\.sha256: is 0, must be 64 hexadecimal digits"),
        ("files", {}, r"expected\[0\]\.files: is \{\}, must be an object of 1 to 4096 paths"),
        ("files", ["a"], r"expected\[0\]\.files: is \['a'\]"),
        ("files", {"a": "0"}, r"expected\[0\]\.files\.a: is '0', must be 64 hexadecimal"),
        ("path", "../a", r"expected\[0\]\.files: is '\.\./a', must be the path of a file"),
        ("path", "/a", r"expected\[0\]\.files: is '/a'"),
        ("path", "a//b", r"expected\[0\]\.files: is 'a//b'"),
        ("path", "a\nb", r"expected\[0\]\.files: is 'a"),
        ("path", "a\\b", r"expected\[0\]\.files: is 'a"),
        ("path", "a" * 1025, r"expected\[0\]\.files: is 'aa"),
        ("twice", None, r"expected\[3\]\.name: is 'base', as that of an entry before it"),
        ("many", None, r"has more than 64 members"),
    ],
)
def test_what_is_no_expected_result(packed, tmp_path, field, value, message):
    about = about_of(packed)
    about["expected"] = edit(about["expected"], field, value)
    write_edited(packed, tmp_path / "edited.nola", about)
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError, match=f"edited.nola: {message}") as caught:
        ne.Adapter.load(tmp_path / "edited.nola")
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@given(
    names=st.lists(st.text(min_size=1, max_size=9).filter(str.isprintable), unique=True),
    kinds=st.data(),
)
def test_whatever_may_be_expected_is_read_again(names, kinds, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "a.nola"
    digits = st.text("0123456789abcdef", min_size=64, max_size=64)
    paths = st.dictionaries(st.text("aé. -", min_size=1, max_size=4), digits, min_size=1)
    results = []
    for name in names[:5]:
        kind = kinds.draw(st.sampled_from(["folder", "safetensors", "gguf"]))
        found = kinds.draw(paths) if kind == "folder" else {}
        files = {f"sub/{path}x": sha256 for path, sha256 in sorted(found.items())}
        sha256 = hash_of_list(files) if files else kinds.draw(digits)
        results.append(ExpectedResult(name, kind, sha256[:32], sha256, files))
    tiny_adapter().pack(path, expect=iter(results))
    assert ne.Adapter.load(path).expected == tuple(results)


@pytest.mark.parametrize(
    ("expect", "error", "message"),
    [
        (["base"], ArgumentError, "expect: 'base' is not an ExpectedResult"),
        (RESULTS[0], ArgumentError, "expect: 'base' is not an ExpectedResult"),
        ([RESULTS[0], RESULTS[0]], AdapterError, r"expected\[1\]\.name: is 'base', as that of"),
        ([RESULTS[0]._replace(name="a\n")], AdapterError, r"expected\[0\]\.name: is 'a"),
        (
            [RESULTS[1]._replace(name=str(number)) for number in range(65)],
            AdapterError,
            "would be of 65 bases, more than the limit of 64",
        ),
    ],
)
def test_what_cannot_be_packed(tmp_path, expect, error, message):
    tiny_adapter().pack(tmp_path / "a.nola")
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message) as caught:
        tiny_adapter().pack(tmp_path / "a.nola", force=True, expect=expect)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_a_file_that_exists_is_refused_before_results_are_found(tmp_path):
    (tmp_path / "a.nola").write_text("mine")

    def results():
        pytest.fail("asked for")
        yield

    with pytest.raises(NolaEdgeError, match="exists already"):
        tiny_adapter().pack(tmp_path / "a.nola", expect=results())
    assert snapshot(tmp_path).keys() == {"a.nola"}
