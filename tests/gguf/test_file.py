"""The check of a GGUF header: what ggml reads is read, and nothing that lies."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.errors import ChangedError, FormatError, NolaEdgeError
from nola_edge.files.gguf import GgufFile
from nola_edge.files.gguf_cursor import LongValue
from nola_edge.files.gguf_types import TENSOR_TYPES
from nola_edge.files.signature import is_gguf
from tests.conftest import snapshot
from tests.gguf.encode import (
    ARRAY,
    BOOL,
    CODES,
    FLOAT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    encode,
    header,
    llama_pairs,
    padded,
    pair,
    stored,
    tensor,
    text,
)

F = np.float32
ONE = tensor("a", [8], 0, 0)  # 32 bytes
DATA = b"\0" * 32
HUGE = 2**62


def file_of(*parts, data=DATA, **options):
    return padded(header(*parts, **options)) + data


BAD = {
    "empty": (b"", "too few"),
    "short": (b"GGUF\3\0\0\0", "too few"),
    "other magic": (file_of([], [ONE], magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (file_of([], [ONE], version=1), "convert the model again"),
    "version 4": (file_of([], [ONE], version=4), "version: 4 is not 2 or 3"),
    "big-endian": (file_of([], [ONE], version=3 << 24), "it is big-endian"),
    "tensors": (file_of([], [ONE], counts=(HUGE, 0)), "tensor_count"),
    "pairs": (file_of([], [ONE], counts=(1, HUGE)), "kv_count"),
    "many pairs": (
        header([], [], counts=(0, 70_000)) + b"\0" * 1_000_000, "more than 65536",
    ),
    "one tensor too many": (file_of([], [ONE], counts=(2, 0), data=b""), "do not fit"),
    "key beyond the file": (file_of([struct.pack("<Q", 2**63) + b"k"], [ONE]), "metadata key has"),
    "empty key": (file_of([pair("", UINT32, 1)], [ONE]), "has 0 bytes"),
    "key no UTF-8": (file_of([pair(b"\xff", UINT32, 1)], [ONE]), "not UTF-8"),
    "key twice": (file_of([pair("k", UINT32, 1)] * 2, [ONE]), "k: appears twice"),
    "value type": (file_of([text("k") + struct.pack("<I", 13) + DATA], [ONE]), "value type 13"),
    "bool of 2": (file_of([pair("k", BOOL, 2)], [ONE]), "not a bool"),
    "string beyond the file": (
        file_of([text("k") + struct.pack("<IQ", STRING, HUGE)], [ONE]), "a string takes",
    ),
    "array beyond the file": (
        file_of([text("k") + struct.pack("<IIQ", ARRAY, UINT64, HUGE)], [ONE]), "an array of",
    ),
    "array of strings beyond the file": (
        file_of([text("k") + struct.pack("<IIQ", ARRAY, STRING, HUGE)], [ONE]), "an array of",
    ),
    "array of arrays": (
        file_of([text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)], [ONE]), "value type 9",
    ),
    "string in an array beyond the file": (
        file_of([text("k") + struct.pack("<IIQQ", ARRAY, STRING, 1, HUGE)], [ONE]), "a string",
    ),
    "alignment 0": (file_of([pair("general.alignment", UINT32, 0)], [ONE]), "power of two"),
    "alignment 24": (file_of([pair("general.alignment", UINT32, 24)], [ONE]), "power of two"),
    "alignment huge": (file_of([pair("general.alignment", UINT32, 2**31)], [ONE]), "power of two"),
    "alignment a bool": (file_of([pair("general.alignment", BOOL, 1)], [ONE]), "power of two"),
    "alignment text": (file_of([pair("general.alignment", STRING, "32")], [ONE]), "power of two"),
    "name too long": (file_of([], [tensor("n" * 64, [8], 0, 0)]), "has 64 bytes"),
    "name empty": (file_of([], [tensor("", [8], 0, 0)]), "has 0 bytes"),
    "name twice": (
        file_of([], [ONE, tensor("a", [8], 0, 32)], data=DATA * 2), "a: appears twice",
    ),
    "five dimensions": (file_of([], [tensor("a", [1] * 5, 0, 0)]), "has 5 dimensions"),
    "huge dimensions": (
        file_of([], [text("a") + struct.pack("<I", 2**32 - 1) + DATA]), "dimensions; at most",
    ),
    "product overflows": (file_of([], [tensor("a", [2**32] * 4, 0, 0)]), "too large"),
    "one size overflows": (file_of([], [tensor("a", [2**64 - 1, 0], 0, 0)]), "too large"),
    "unknown type": (file_of([], [tensor("a", [8], 99, 0)]), "unknown type 99"),
    "removed type": (file_of([], [tensor("a", [32], 4, 0)]), "unknown type 4"),
    "half a block": (file_of([], [tensor("a", [40], CODES["Q8_0"], 0)]), "not whole blocks"),
    "first offset": (file_of([], [tensor("a", [8], 0, 32)], data=DATA * 2), "has offset 32"),
    "overlap": (file_of([], [ONE, tensor("b", [8], 0, 0)], data=DATA), "b: has offset 0"),
    "hole": (file_of([], [ONE, tensor("b", [8], 0, 64)], data=DATA * 3), "b: has offset 64"),
    "offset not aligned": (
        file_of([], [ONE, tensor("b", [8], 0, 33)], data=DATA * 3), "b: has offset 33",
    ),
    "truncated": (file_of([], [tensor("a", [9], 0, 0)]), "it is truncated"),
    "tensor of the whole world": (file_of([], [tensor("a", [2**40], 0, 0)]), "it is truncated"),
    "trailing bytes": (file_of([], [ONE], data=DATA + b"\0" * 33), "belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_lies_is_refused(case, tmp_path):
    data, message = BAD[case]
    (tmp_path / "bad.gguf").write_bytes(data)
    before = snapshot(tmp_path)
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        GgufFile.open(tmp_path / "bad.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(caught.value)
    assert str(tmp_path / "bad.gguf") in str(caught.value)
    assert str(caught.value).isprintable()
    assert peak < len(data) * 4 + 200_000
    assert snapshot(tmp_path) == before


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(FormatError):
            GgufFile.open(path)


def test_metadata_and_tensors(tmp_path):
    arrays = {
        "token_embd.weight": np.arange(12, dtype=F).reshape(3, 4),
        "norm": np.ones(5, np.float16),
        "q": ("Q8_0", (2, 64), bytes(range(136))),
        "scalar": np.array(2.5, F),
        "none": np.empty((0, 3), F),
    }
    pairs = [
        *llama_pairs(),
        pair("long", STRING, "x" * 100_000),
        pair("numbers", ARRAY, (UINT8, [1, 2, 3])),
        pair("many", ARRAY, (UINT8, [7] * 5000)),
    ]
    (tmp_path / "m.gguf").write_bytes(encode(pairs, arrays))
    with GgufFile.open(tmp_path / "m.gguf") as file:
        assert file.version == 3
        assert file.alignment == 32
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["llama.attention.head_count"] == 4
        assert file.metadata["general.quantized"] is False
        assert file.metadata["tokenizer.ggml.tokens"] == LongValue(50)
        assert file.metadata["long"] == LongValue(100_000)
        assert file.metadata["many"] == LongValue(5000)
        assert file.metadata["numbers"] == [1, 2, 3]
        assert list(file.tensors) == list(arrays)
        for name, array in arrays.items():
            info = file.tensors[name]
            content = bytearray(info.nbytes)
            file.read_into(memoryview(content), info.start)
            kind, shape, expected = array if isinstance(array, tuple) else stored(array)
            assert (info.dtype, info.shape, bytes(content)) == (kind, shape, expected)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_alignments_and_versions(tmp_path, version, alignment):
    pairs = [pair("general.alignment", UINT32, alignment)]
    data = bytearray(encode(pairs, {"a": np.ones(3, F), "b": np.full(2, 2, F)}, alignment))
    data[4:8] = struct.pack("<I", version)
    (tmp_path / "m.gguf").write_bytes(data)
    with GgufFile.open(tmp_path / "m.gguf") as file:
        values = bytearray(8)
        file.read_into(memoryview(values), file.tensors["b"].start)
        assert np.array_equal(np.frombuffer(values, F), [2, 2])


def test_the_last_padding_may_be_missing(tmp_path):
    data = encode([], {"a": np.ones(3, F)})
    (tmp_path / "m.gguf").write_bytes(data[:-20])
    GgufFile.open(tmp_path / "m.gguf").close()
    (tmp_path / "m.gguf").write_bytes(data[:-21])
    with pytest.raises(FormatError, match="truncated"):
        GgufFile.open(tmp_path / "m.gguf")


@given(st.data())
def test_no_damage_does_harm(tmp_path, data):
    """Whatever bytes change, the file is read or refused, in memory that fits the file."""
    whole = encode(llama_pairs(), {"a": np.ones((4, 8), F), "b": np.ones(3, np.float16)})
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.gguf").write_bytes(damaged)
    try:
        with GgufFile.open(tmp_path / "m.gguf") as file:
            for info in file.tensors.values():
                assert info.stop <= file.size
                file.read_into(memoryview(bytearray(info.nbytes)), info.start)
    except NolaEdgeError as error:
        assert str(error).isprintable()  # noqa: PT017


def test_a_change_is_noticed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(encode([], {"a": np.ones(64, F)}))
    with GgufFile.open(path) as file:
        os.truncate(path, 100)
        with pytest.raises(ChangedError, match="shorter"):
            file.read_into(memoryview(bytearray(256)), file.tensors["a"].start)
        with pytest.raises(ChangedError, match="changed"):
            file.check_unchanged()


def test_the_table_of_types_is_that_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    theirs = {
        code.name: (int(code), *gguf.GGML_QUANT_SIZES[code]) for code in gguf.GGMLQuantizationType
    }
    ours = {name: (kind.code, kind.block, kind.nbytes) for name, kind in TENSOR_TYPES.items()}
    assert {name: theirs[name] for name in ours if name in theirs} == {
        name: kind for name, kind in ours.items() if name in theirs
    }
    assert set(theirs) <= set(ours)


def test_a_file_of_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_uint32("qwen2.block_count", 3)
    writer.add_array("names", ["a", "ä", ""])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("flag", True)
    values = {"x": np.arange(10, dtype=F).reshape(2, 5), "y": np.ones(7, np.float16)}
    for name, array in values.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata["qwen2.block_count"] == 3
        assert file.metadata["names"] == LongValue(3)
        assert file.metadata["numbers"] == [1.5, 2.5]
        assert file.metadata["flag"] is True
        for name, array in values.items():
            info = file.tensors[name]
            content = bytearray(info.nbytes)
            file.read_into(memoryview(content), info.start)
            assert bytes(content) == array.tobytes()
            assert info.shape == array.shape


def test_numbers_of_metadata(tmp_path):
    (tmp_path / "m.gguf").write_bytes(
        encode([pair("f", FLOAT32, 0.5), pair("u", UINT64, 2**64 - 1)], {"a": np.ones(1, F)})
    )
    with GgufFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata == {"f": 0.5, "u": 2**64 - 1}


def test_pipes_do_not_hang_who_asks_what_a_file_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_gguf(tmp_path / "pipe")
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "missing")


def test_what_is_kept_of_a_header_is_bounded(tmp_path):
    """Millions of numbers and megabytes of strings, all of them there: walked over, not kept."""
    numbers = pair("", ARRAY, (UINT8, [1] * 4096))[8:]
    pairs = [text(f"k{i}") + numbers for i in range(3000)]
    pairs += [pair(f"s{i}", STRING, "x" * 4096) for i in range(1000)]
    (tmp_path / "m.gguf").write_bytes(encode(pairs, {"a": np.ones(3, F)}))
    tracemalloc.start()
    with GgufFile.open(tmp_path / "m.gguf") as file:
        _, peak = tracemalloc.get_traced_memory()
        kept = [value for value in file.metadata.values() if not isinstance(value, LongValue)]
        assert kept
        assert len(file.metadata) == 4000
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([pair("k" * 65000 + str(i), UINT8, 1) for i in range(70)], "the keys take more than"),
        ([text("k") + struct.pack("<IIQ", ARRAY, STRING, 5_000_000)], "more than 4194304 strings"),
    ],
)
def test_headers_that_would_take_for_ever_are_refused(pairs, message, tmp_path):
    data = padded(header(pairs, [ONE]))
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    os.truncate(path, 60_000_000)  # sparse: so many empty strings are there
    with pytest.raises(FormatError, match=message):
        GgufFile.open(path)
