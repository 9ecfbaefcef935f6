"""What belongs to the model in a folder, what does not, and which files are its weights."""

import errno
import json
import os

import numpy as np
import pytest

from nola_edge.errors import NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.folder import INDEX_NAME
from tests.conftest import write_safetensors, write_sharded
from tests.files.conftest import TENSORS, refused


def write_part(path, tensors):
    path.parent.mkdir(exist_ok=True)
    write_safetensors(path, tensors)


def test_companions_and_what_is_left_behind(sharded):
    for name in ("config.json", "tokenizer.model", "pytorch_model.bin", "model.gguf"):
        (sharded / name).write_text("x")
    (sharded / "1_Pooling").mkdir()
    (sharded / "1_Pooling" / "config.json").write_text("x")
    (sharded / ".git").mkdir()
    (sharded / ".git" / "config").write_text("x")
    (sharded / "pytorch_model.bin.index.json").write_text("{}")
    with Checkpoint.open(sharded) as checkpoint:
        carried = {str(path) for path in checkpoint.companions()}
        left = {str(path) for path in checkpoint.left_behind()}
    assert carried == {"config.json", "tokenizer.model", "1_Pooling/config.json"}
    assert left == {"pytorch_model.bin", "model.gguf", "pytorch_model.bin.index.json"}


def carried_and_left(folder):
    with Checkpoint.open(folder) as checkpoint:
        weights = {str(path) for path in checkpoint.companion_weights()}
        carried = {str(path) for path in checkpoint.companions()}
        assert weights <= carried
        return weights, carried - weights, {str(path) for path in checkpoint.left_behind()}


def test_weights_of_other_parts_are_carried_over(sharded):
    """In the folders that modules.json names, whatever the format; elsewhere if safetensors."""
    other = {"linear.weight": np.ones((3, 2), np.float32)}
    write_part(sharded / "2_Dense" / "model.safetensors", other)
    write_part(sharded / "speech" / "part.safetensors", other)
    write_sharded(sharded / "vae", other | {"linear.bias": np.ones(3, np.float32)}, 2)
    for name in ("3_Dense/0_Inner", "onnx", "1_Pooling"):
        (sharded / name).mkdir(parents=True)
    for name in ("3_Dense/0_Inner/pytorch_model.bin", "onnx/model.onnx", "1_Pooling/config.json"):
        (sharded / name).write_text("x")
    modules = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "3_Dense", "../..", "/", 7)]
    (sharded / "modules.json").write_text(json.dumps([*modules, None]))
    weights, others, left = carried_and_left(sharded)
    shards = {f"vae/model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert weights == {
        "2_Dense/model.safetensors", "3_Dense/0_Inner/pytorch_model.bin", "speech/part.safetensors",
        f"vae/{INDEX_NAME}", *shards,
    }  # fmt: skip
    assert others == {"modules.json", "1_Pooling/config.json"}
    assert left == {"onnx/model.onnx"}


def test_other_copies_of_the_weights_are_left_behind(sharded):
    """With the model's own names and shapes, or where publishers put them under others."""
    half = {name: values.astype(np.float16) for name, values in TENSORS.items()}
    write_sharded(sharded / "fp16", half | {"more": np.ones(1, np.float32)}, 2)
    write_part(sharded / "original" / "model.safetensors", {"x": np.ones(2, np.float32)})
    write_part(sharded / "another" / "model.safetensors", {"t0": np.ones(7, np.float32)})
    for name in ("consolidated.safetensors", "model.safetensors.index.fp16.json"):
        (sharded / name).write_text("x")
    weights, others, left = carried_and_left(sharded)
    assert weights == {"another/model.safetensors"}
    assert others == set()
    assert left == {
        f"fp16/{INDEX_NAME}", "fp16/model-00001-of-00002.safetensors",
        "fp16/model-00002-of-00002.safetensors", "original/model.safetensors",
        "consolidated.safetensors", "model.safetensors.index.fp16.json",
    }  # fmt: skip


def test_what_a_named_folder_holds_is_never_a_copy(sharded):
    """A second encoder of the same architecture has the names and shapes of the first."""
    write_part(sharded / "1_Encoder" / "model.safetensors", TENSORS)
    assert carried_and_left(sharded)[0] == set()
    (sharded / "modules.json").write_text('[{"path": ""}, {"path": "1_Encoder"}]')
    assert carried_and_left(sharded)[0] == {"1_Encoder/model.safetensors"}


def test_an_adapter_and_a_training_run_are_left_behind(sharded):
    for folder in ("", "french/", "checkpoint-500/", "checkpoint-500/global_step500/"):
        (sharded / folder).mkdir(exist_ok=True)
        (sharded / folder / "adapter_config.json").write_text("{}")
        write_safetensors(
            sharded / folder / "adapter_model.safetensors", {"a": np.ones(1, np.float32)}
        )
    for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"):
        (sharded / name).write_text("x")
    curves = sharded / "runs" / "Nov24_host"
    curves.mkdir(parents=True)
    for name in ("events.out.tfevents.17.host.1.0", "notes.txt"):
        (curves / name).write_text("x")
    os.mkfifo(sharded / "pipe")
    weights, others, left = carried_and_left(sharded)
    assert weights == {"french/adapter_model.safetensors"}
    assert others == {"french/adapter_config.json", "runs/Nov24_host/notes.txt"}
    assert left == {
        "adapter_config.json", "adapter_model.safetensors", "checkpoint-500", "optimizer.pt",
        "rng_state.pth", "trainer_state.json", "training_args.bin", "pipe",
        "runs",
    }  # fmt: skip


def test_a_broken_part_is_refused(sharded):
    write_part(sharded / "2_Dense" / "model.safetensors", TENSORS)
    path = sharded / "2_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(sharded, "it is truncated")


def test_weights_of_another_part_that_lie_elsewhere(sharded):
    outside = sharded.parent / "secret.safetensors"
    write_safetensors(outside, TENSORS)
    (sharded / "2_Dense").mkdir()
    (sharded / "2_Dense" / "pytorch_model.bin").symlink_to(outside)
    (sharded / "modules.json").write_text('[{"path": "2_Dense"}]')
    refused(sharded, "leads out of the folder")
    (sharded / "2_Dense" / "pytorch_model.bin").unlink()
    (sharded / "2_Dense" / "model.safetensors").symlink_to(outside)
    refused(sharded, "leads out of the folder")


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "other.safetensors.index.json",
    ],
)
def test_other_names_of_an_index(sharded, name):
    (sharded / INDEX_NAME).rename(sharded / name)
    with Checkpoint.open(sharded) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        assert checkpoint.index_name == name
        assert checkpoint.companions() == checkpoint.left_behind() == []
        with (sharded / name).open("a") as file:
            file.write(" ")
        with pytest.raises(NolaEdgeError, match=rf"{name}: changed while the base was read"):
            checkpoint.check_unchanged()


def test_the_usual_name_comes_first(sharded):
    for name in ("model.fp16.safetensors", "diffusion_pytorch_model.safetensors"):
        write_part(sharded.parent / "lone" / name, TENSORS)
    (sharded / "model.safetensors.index.fp16.json").write_text("x")
    for folder, name in (
        (sharded, "model-00001-of-00002.safetensors"),
        (sharded.parent / "lone", "diffusion_pytorch_model.safetensors"),
    ):
        with Checkpoint.open(folder) as checkpoint:
            assert checkpoint.shards[0].path.name == name


def without_index(folder):
    (folder / INDEX_NAME).unlink()


def with_two_indices(folder):
    for name in ("a", "b"):
        (folder / INDEX_NAME).with_name(f"{name}.safetensors.index.json").write_text("{}")
    without_index(folder)


def with_two_files(folder):
    without_index(folder)
    for number, shard in enumerate(folder.glob("*.safetensors")):
        shard.rename(folder / f"part{number}.safetensors")


def in_folders(*names):
    def change(folder):
        without_index(folder)
        shards = sorted(folder.glob("*.safetensors"))
        for name in names:
            (folder / name).mkdir()
            (folder / name / "model.safetensors").write_bytes(shards[0].read_bytes())
        for shard in shards:
            shard.unlink()

    return change


def with_an_adapter_only(folder):
    without_index(folder)
    first, second = sorted(folder.glob("*.safetensors"))
    first.rename(folder / "adapter_model.safetensors")
    second.unlink()
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_index, "has 2 safetensors files but no model.safetensors.index.json; download"),
        (with_two_indices, "a.safetensors.index.json, b.safetensors.index.json; keep only the"),
        (with_two_files, "has 2 safetensors files but no model.safetensors.index.json; give the"),
        (with_an_adapter_only, "has an adapter but no model; give the model"),
        (in_folders("0_Transformer"), "0_Transformer, and put the output in its place in a copy"),
        (
            in_folders("unet", "text_encoder"),
            "has no weights itself, but its subfolders do (text_encoder, unet); give one of them",
        ),
        (in_folders("checkpoint-1000", "checkpoint-200"), "base/checkpoint-1000"),
        (in_folders(), "has neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_folder_without_weights_of_its_own(sharded, change, message):
    change(sharded)
    refused(sharded, message)


def test_a_folder_that_cannot_be_read(sharded, monkeypatch):
    """What is not seen would be lost."""
    (sharded / "closed").mkdir()
    scandir = os.scandir

    def closed(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with (
        Checkpoint.open(sharded) as checkpoint,
        pytest.raises(NolaEdgeError, match="closed: cannot be read: Permission denied"),
    ):
        checkpoint.companions()
