"""Whole GGUF files that are written here, read with the gguf package and with our own reader."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from nola_edge.files.gguf import GgufFile
from nola_edge.files.gguf_cursor import LongValue
from nola_edge.files.gguf_writer import write_gguf

gguf = pytest.importorskip("gguf")

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["a", "Ġb", "ü"],
    "tokenizer.ggml.token_type": [3, 1, 1],
}


def tensors():
    rng = np.random.default_rng(0)
    return {
        "token_embd.weight": rng.standard_normal((3, 5), np.float32).astype(ml_dtypes.bfloat16),
        "output_norm.weight": rng.standard_normal(5, np.float32),
        "blk.0.attn_q.weight": rng.standard_normal((7, 5), np.float32).astype(np.float16).T,
    }


def test_the_gguf_package_reads_what_was_written(tmp_path):
    write_gguf(tmp_path / "model.gguf", METADATA, tensors())
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    for key, value in METADATA.items():
        assert reader.get_field(key).contents() == value
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert list(read) == list(tensors())
    for name, array in tensors().items():
        assert read[name].tensor_type.name == {4: "F32"}.get(
            array.dtype.itemsize, "BF16" if array.dtype == ml_dtypes.bfloat16 else "F16"
        )
        assert read[name].data.tobytes() == array.tobytes()
        assert list(read[name].shape) == list(reversed(array.shape))


def test_our_reader_accepts_it(tmp_path):
    write_gguf(tmp_path / "model.gguf", METADATA, tensors())
    with GgufFile.open(tmp_path / "model.gguf") as file:
        assert file.metadata == {**METADATA, "tokenizer.ggml.tokens": LongValue(3)}
        assert {name: info.shape for name, info in file.tensors.items()} == {
            name: array.shape for name, array in tensors().items()
        }


def test_a_file_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_gguf(tmp_path / "model.gguf", METADATA, tensors())
    assert (tmp_path / "model.gguf").read_bytes() == b"mine"
