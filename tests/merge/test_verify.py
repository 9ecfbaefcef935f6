"""Verifying a merged checkpoint: all that a merge writes counts, and what differs is said."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.errors import CheckpointError, NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.safetensors import encode_header
from tests.conftest import load_all, write_safetensors, write_sharded
from tests.merge.test_whole_tensors import tied, whole_of

F = np.float32
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def out(tiny, tmp_path):
    """A merge into a base with weights of another part."""
    write_safetensors(tiny[0] / "sub" / "part.safetensors", {"linear.weight": np.ones((2, 3), F)})
    ne.merge_checkpoint(*tiny, tmp_path / "out")
    return tmp_path / "out"


def found(out, tiny, **options):
    """Return the differences of tensors, and of files as a dict of lines."""
    report = ne.verify_checkpoint(out, *tiny, **options)
    lines = {d.file: f"{d.problem}: {d.detail}" for d in report.files}
    assert len(lines) == len(report.files)
    assert all(line.isprintable() for line in lines.values())
    assert report.identical == (not report.differences and not lines)
    return [d.tensor for d in report.differences], lines


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_header(path, metadata):
    """Write another header before the same tensors."""
    with Checkpoint.open(path) as checkpoint:
        (file,) = checkpoint.shards
        entries = [(i.name, i.dtype, i.shape, i.nbytes) for i in file.tensors.values()]
        data = path.read_bytes()[file.header_size :]
    path.write_bytes(encode_header(entries, metadata) + data)


def test_what_was_merged_is_identical(out, tiny):
    assert found(out, tiny) == ([], {})
    (out / ".gitattributes").write_text("hidden files are not looked at")
    assert found(out, tiny) == ([], {})


@given(st.data())
def test_no_byte_goes_unnoticed(out, tiny, data):
    files = sorted(path for path in out.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    changed = bytearray(before)
    changed[data.draw(st.integers(0, len(before) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        assert found(out, tiny) != ([], {})
    except NolaEdgeError:
        pass
    finally:
        path.write_bytes(before)


def unlink(name):
    return lambda out: (out / name).unlink()


def append(name, text):
    return lambda out: (out / name).write_bytes((out / name).read_bytes() + text)


CHANGES = {
    "config": (
        lambda out: edit_json(out / "config.json", vocab_size=3, model_type="x"),
        "config.json",
        "content: differs in model_type, vocab_size",
    ),
    "many keys": (
        lambda out: edit_json(out / "config.json", **dict.fromkeys("abcdef\n", 1)),
        "config.json",
        "content: differs in a, b, c, d and 3 more",
    ),
    "spacing": (
        append("config.json", b"\n"),
        "config.json",
        "content: differs in the order or the form of its entries",
    ),
    "no JSON": (
        append("config.json", b"}"),
        "config.json",
        "content: differs from byte 22 on and has 23 bytes instead of 22",
    ),
    "tokenizer": (
        lambda out: (out / "sub" / "tokenizer.txt").write_text("tokemz"),
        "sub/tokenizer.txt",
        "content: differs from byte 4 on",
    ),
    "other part": (
        append("sub/part.safetensors", b"x"),
        "sub/part.safetensors",
        "content: differs from byte",
    ),
    "missing": (unlink("config.json"), "config.json", "missing: is missing"),
    "missing part": (
        unlink("sub/part.safetensors"), "sub/part.safetensors", "missing: is missing",
    ),
    "unexpected": (
        lambda out: (out / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
        "unexpected: a merge does not write it",
    ),
    "unexpected weights": (
        lambda out: (out / "sub" / "pytorch_model.bin").write_text("x"),
        "sub/pytorch_model.bin",
        "unexpected: a merge does not write it",
    ),
    "index": (
        lambda out: edit_json(out / INDEX, metadata={"total_size": 1}),
        INDEX,
        "content: differs in metadata",
    ),
    "metadata": (
        lambda out: edit_header(out / SHARD, {"format": "pt", "made by": "hand"}),
        SHARD,
        "header: the header differs in __metadata__",
    ),
    "no metadata": (
        lambda out: edit_header(out / SHARD, None),
        SHARD,
        "header: the header differs in __metadata__",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_beside_the_tensors(out, tiny, name):
    change, file, line = CHANGES[name]
    change(out)
    tensors, files = found(out, tiny)
    assert tensors == []
    assert list(files) == [file]
    assert files[file].startswith(line)
    assert found(out, tiny, tensors_only=True) == ([], {})


def test_a_header_in_another_order(out, tiny):
    path = out / SHARD
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode()
    path.write_bytes(data[:8] + text.ljust(size) + data[8 + size :])
    assert found(out, tiny) == (
        [], {SHARD: "header: the header differs in the order or the form of its entries"},
    )  # fmt: skip


def test_tensors_in_other_files(out, tiny, tmp_path):
    """As another program shards them: the same tensors, and not what a merge writes."""
    write_sharded(tmp_path / "two", load_all(out), 2)
    tensors, files = found(tmp_path / "two", tiny)
    assert tensors == []
    assert files["model-00001-of-00002.safetensors"].startswith("unexpected")
    assert files[SHARD].startswith("missing")
    assert found(tmp_path / "two", tiny, tensors_only=True) == ([], {})


def test_weights_that_nobody_would_load(out, tiny):
    """Loaders prefer one file to shards, and so does the comparison."""
    write_safetensors(out / "model.safetensors", load_all(out))
    tensors, files = found(out, tiny)
    assert tensors == []
    assert files["model.safetensors"].startswith("unexpected")
    assert files[SHARD] == "index: holds none of the weights"


def test_a_file_for_a_folder(out, tiny, tmp_path):
    base, adapter = tiny
    write_safetensors(tmp_path / "base.safetensors", load_all(base))
    write_safetensors(tmp_path / "out.safetensors", load_all(out))
    line = {"out.safetensors": "kind: is a file, but a merge writes a folder"}
    assert found(tmp_path / "out.safetensors", tiny) == ([], line)
    assert found(tmp_path / "out.safetensors", tiny, tensors_only=True) == ([], {})
    line = {"out": "kind: is a folder, but a merge writes a file"}
    assert found(out, (tmp_path / "base.safetensors", adapter)) == ([], line)
    given = (tmp_path / "base.safetensors", adapter)
    assert found(tmp_path / "out.safetensors", given) == ([], {})
    edit_header(tmp_path / "out.safetensors", {"format": "np"})
    line = {"out.safetensors": "header: the header differs in __metadata__"}
    assert found(tmp_path / "out.safetensors", given) == ([], line)


def test_what_a_merge_changes_is_expected(tiny, tmp_path):
    """An added tensor changes header and index, an output layer the configuration."""
    given = tiny[0], whole_of("classifier.weight", np.ones((3, 40), F))
    ne.merge_checkpoint(*given, tmp_path / "out")
    assert found(tmp_path / "out", given) == ([], {})
    before = json.loads((tiny[0] / INDEX).read_text())
    edit_json(tmp_path / "out" / INDEX, metadata=before["metadata"])
    assert found(tmp_path / "out", given) == ([], {INDEX: "content: differs in metadata"})
    whole = {"lm_head.weight": np.zeros((5, 4), F)}
    given = tied(tiny, tmp_path, whole, {"tie_word_embeddings": True})
    ne.merge_checkpoint(*given, tmp_path / "untied")
    assert found(tmp_path / "untied", given) == ([], {})
    shutil.copy(given[0] / "config.json", tmp_path / "untied" / "config.json")
    line = {"config.json": "content: differs in tie_word_embeddings"}
    assert found(tmp_path / "untied", given) == ([], line)


def test_nothing_outside_is_opened(out, tiny, tmp_path):
    (out / "config.json").rename(tmp_path / "config.json")
    os.symlink(tmp_path / "config.json", out / "config.json")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        found(out, tiny)
