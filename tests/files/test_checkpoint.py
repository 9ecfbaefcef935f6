"""Folders, shards and indices that do not agree are refused, and nothing outside is opened."""

import codecs
import json
import os
from pathlib import Path

import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.errors import ArgumentError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.folder import INDEX_NAME
from tests.conftest import write_safetensors
from tests.files.conftest import TENSORS, refused


def edit_index(folder, change):
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_shards_are_one_checkpoint(sharded):
    with Checkpoint.open(sharded) as checkpoint:
        assert list(checkpoint.tensors) == list(TENSORS)
        assert len(checkpoint.shards) == 2


def test_a_lone_file_of_another_name(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", TENSORS)
    for path in (tmp_path, tmp_path / "weights.safetensors"):
        with Checkpoint.open(path) as checkpoint:
            assert set(checkpoint.tensors) == set(TENSORS)


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", 7, None,
     ".hidden.safetensors", "a\\b.safetensors", "a\0.safetensors"],
)  # fmt: skip
def test_an_index_that_points_elsewhere(sharded, shard):
    write_safetensors(sharded.parent / "outside.safetensors", TENSORS)
    edit_index(sharded, lambda index: index["weight_map"].update(t0=shard))
    refused(sharded, "not the plain name")


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "is missing")


def test_an_index_that_names_a_tensor_too_many(sharded):
    edit_index(
        sharded,
        lambda index: index["weight_map"].update(new="model-00001-of-00002.safetensors"),
    )
    refused(sharded, "'new' is not in 'model-00001-of-00002.safetensors'; save the model again")


def test_an_index_that_names_a_tensor_too_few(sharded):
    edit_index(sharded, lambda index: index["weight_map"].pop("t3"))
    shard = "model-00002-of-00002.safetensors"
    refused(sharded, f"does not name tensor 't3' of '{shard}'; save the model again")


def test_a_tensor_in_two_shards(sharded):
    write_safetensors(sharded / "model-00001-of-00002.safetensors", TENSORS)
    refused(sharded, "is also in 'model-00001-of-00002.safetensors'; save the model again")


def test_an_index_with_a_byte_order_mark(sharded):
    path = sharded / INDEX_NAME
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    refused(sharded, "is not valid JSON: begins with a byte order mark; save it without")


def test_an_index_with_duplicate_keys(sharded):
    (sharded / INDEX_NAME).write_text('{"weight_map": {"a": "x", "a": "y"}}')
    refused(sharded, "duplicate key")


@pytest.mark.parametrize("value", ['{"weight_map": []}', "{}", "[]", "null"])
def test_an_index_of_another_form(sharded, value):
    (sharded / INDEX_NAME).write_text(value)
    refused(sharded, INDEX_NAME)


def test_pickles_only(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path / "base", "only safetensors is read")


def test_links_out_of_the_folder_are_refused(sharded):
    outside = sharded.parent / "secret.json"
    outside.write_text("{}")
    (sharded / "config.json").symlink_to(outside)
    refused(sharded, "leads out of the folder")


def hub_snapshot(tmp_path, inner="."):
    """A folder of the Hugging Face cache, in which every file is a link to a blob."""
    cache = tmp_path / "models--a--b"
    folder = cache / "snapshots" / "abc" / inner
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    write_safetensors(cache / "blobs" / "123", TENSORS)
    (cache / "blobs" / "456").write_text("{}")
    for name, blob in (("model.safetensors", "123"), ("config.json", "456")):
        (folder / name).symlink_to(os.path.relpath(cache / "blobs" / blob, folder))
    return folder


@pytest.mark.parametrize("inner", [".", "text_encoder", "a/b"])
def test_links_of_the_hub_cache_are_followed(tmp_path, inner):
    with Checkpoint.open(hub_snapshot(tmp_path, inner)) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        assert checkpoint.companions() == [Path("config.json")]


def test_an_adapter_in_a_folder_of_the_hub_cache(tiny, tmp_path):
    folder = hub_snapshot(tmp_path, "french")
    for link in folder.iterdir():
        link.unlink()
    for file in tiny[1].iterdir():
        blob = file.rename(folder.parents[2] / "blobs" / file.name)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    assert len(Adapter.load(folder).modules) == 3


@pytest.mark.parametrize("inner", [".", "text_encoder"])
def test_blobs_may_lie_on_another_disk(tmp_path, inner):
    folder = hub_snapshot(tmp_path, inner)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with Checkpoint.open(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        assert checkpoint.companions() == [Path("config.json")]


@pytest.mark.parametrize(
    "target", ["models--a--b/refs/main", "models--c--d/blobs/123", "models--a--b/blobs/more/123"]
)
def test_the_hub_cache_opens_nothing_but_its_blobs(tmp_path, target):
    folder = hub_snapshot(tmp_path, "text_encoder")
    outside = tmp_path / target
    outside.parent.mkdir(parents=True)
    outside.write_text("{}")
    (folder / "tokenizer.json").symlink_to(outside)
    refused(folder, "leads out of the folder")


def test_a_link_to_what_does_not_exist(sharded):
    (sharded / "config.json").symlink_to("absent.json")
    refused(sharded, "config.json: is a broken link")


def test_what_was_closed_says_so(tiny):
    """Not that its files have disappeared, or are bad descriptors."""
    base, adapter = tiny
    merged = ne.open_merged(base, adapter)
    checkpoint = Checkpoint.open(base)
    for opened in (merged, checkpoint):
        opened.close()
    (file, info) = checkpoint.tensors["embed.weight"]
    for use in (
        lambda: merged["embed.weight"],
        lambda: merged["layers.0.q.weight"],
        lambda: merged.read("embed.weight"),
        checkpoint.check_unchanged,
        lambda: file.read("embed.weight"),
        lambda: file.array("embed.weight"),
        lambda: file.copy_to(1, 0, info.start, 1),
    ):
        with pytest.raises(ArgumentError, match=r"model-0000\d-of-00003.safetensors: was closed;"):
            use()
