"""Verifying a GGUF file: every byte that a merge writes counts, and what differs is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.errors import NolaEdgeError
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf, verify_gguf
from tests.gguf.encode import STRING, UINT32, encode, llama_pairs, pair
from tests.gguf.test_merge import HEADS, KEY_HEADS, adapter_of, arrays_of

#: Nothing at all, and what padding follows.
ODD = {"odd": ("Q4_K", (0, 256), b""), "odd2": np.ones(13, np.float32)}
PAIRS = [*llama_pairs(HEADS, KEY_HEADS), pair("general.name", STRING, "tiny")]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    adapter = adapter_of()
    arrays = {"first": np.ones(13, np.float32), **arrays_of("F16"), **ODD}
    (folder / "base.gguf").write_bytes(encode(PAIRS, arrays))
    merge_gguf(folder / "base.gguf", adapter, folder / "out.gguf")
    tensors = {}
    with GgufFile.open(folder / "out.gguf") as file:
        for name, info in file.tensors.items():
            data = bytearray(info.nbytes)
            file.read_into(memoryview(data), info.start)
            tensors[name] = (info.dtype, info.shape, bytes(data))
    assert encode(PAIRS, tensors) == (folder / "out.gguf").read_bytes()
    return folder, adapter, tensors


def problems(merged, data, **options):
    folder, adapter, _ = merged
    (folder / "changed.gguf").write_bytes(data)
    report = verify_gguf(folder / "changed.gguf", folder / "base.gguf", adapter, **options)
    assert report.identical == (not report.differences and not report.files)
    assert all(difference.file == "changed.gguf" for difference in report.files)
    return report.differences, [(d.problem, d.detail) for d in report.files]


def test_what_was_merged_is_identical(merged):
    assert problems(merged, (merged[0] / "out.gguf").read_bytes()) == ([], [])


@given(st.data())
def test_no_byte_goes_unnoticed(merged, data):
    content = bytearray((merged[0] / "out.gguf").read_bytes())
    # Half of the time in the header, which is a small part of the file.
    end = data.draw(st.sampled_from([2000, len(content)]))
    position = data.draw(st.integers(0, end - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = problems(merged, content)
    except NolaEdgeError:
        return
    assert found != ([], [])


@pytest.mark.parametrize(
    ("pairs", "detail"),
    [
        ([*PAIRS[:-1], pair("general.name", STRING, "other")], "differ in general.name"),
        (PAIRS[:-1], "differ in general.name"),
        ([*PAIRS, pair("more", UINT32, 1)], "differ in more"),
        (PAIRS[::-1], "are in another order"),
        ([*PAIRS, *(pair(f"k{i}", UINT32, i) for i in range(6))], "k0, k1, k2, k3 and 2 more"),
        ([*PAIRS, pair("a\n\x1b", UINT32, 1)], r"differ in a\n\x1b"),
    ],
)
def test_metadata(merged, pairs, detail):
    data = encode(pairs, merged[2])
    tensors, ((problem, found),) = problems(merged, data)
    assert tensors == []
    assert problem == "metadata"
    assert detail in found
    assert found.isprintable()
    assert problems(merged, data, tensors_only=True) == ([], [])


def test_a_long_value_of_the_metadata(merged):
    data = (merged[0] / "out.gguf").read_bytes()
    position = data.index(b"token 7")
    found = problems(merged, data.replace(b"token 7", b"token 8", 1))
    assert found == ([], [("metadata", f"the metadata differ from byte {position + 6} on")])


def test_alignment(merged):
    pairs = [*PAIRS, pair("general.alignment", UINT32, 64)]
    found = problems(merged, encode(pairs, merged[2], 64))
    assert found == ([], [("metadata", "the metadata differ in general.alignment")])


def test_the_version(merged):
    data = bytearray((merged[0] / "out.gguf").read_bytes())
    data[4] = 2
    found = problems(merged, data)
    assert found == ([], [("metadata", "is of GGUF version 2 instead of 3")])


def test_the_order_of_the_tensors(merged):
    data = encode(PAIRS, dict(reversed(merged[2].items())))
    assert problems(merged, data) == ([], [("layout", "the tensors are in another order")])
    assert problems(merged, data, tensors_only=True) == ([], [])


def test_padding(merged):
    data = bytearray((merged[0] / "out.gguf").read_bytes())
    with GgufFile.open(merged[0] / "out.gguf") as file:
        stop = file.tensors["first"].stop
    data[stop] = 1
    assert problems(merged, data) == ([], [("padding", f"the padding at byte {stop} differs")])
    assert problems(merged, data, tensors_only=True) == ([], [])
    size = len(data)
    assert data.endswith(bytes(3))
    data[stop] = 0
    found = problems(merged, data[:-3])
    assert found == ([], [("padding", f"has {size - 3} bytes instead of {size}")])
