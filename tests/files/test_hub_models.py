"""A base may be an id on the Hub wherever an adapter may; only what a merge reads is fetched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_cli import run
from tests.conftest import load_all, snapshot, write_safetensors
from tests.hub import serving

pytest.importorskip("huggingface_hub")

UNWANTED = {
    ".gitattributes": b"hidden",
    "pytorch_model.bin": b"the same weights again",
    "consolidated.safetensors": b"once more",
    "model.fp16.safetensors": b"and rounded",
    "original/consolidated.00.pth": b"as published",
    "checkpoint-10/optimizer.pt": b"of training",
    "runs/events.out.tfevents.1": b"curves",
    "onnx/model.onnx": b"for another program",
    "adapter_config.json": b"{}",
}
CARRIED = {
    "tokenizer.json": b"{}",
    "original/params.json": b"{}",
    "2_Dense/pytorch_model.bin": b"of another part",
    "modules.json": json.dumps([{"path": ""}, {"path": "2_Dense"}]).encode(),
    "odd [1].txt": b"a name that is a pattern",
}


def put(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A Hub with a sharded base in two revisions, and an adapter; the base as a whole is beside."""
    base, adapter = tiny
    put(base, {**UNWANTED, **CARRIED})
    older = shutil.copytree(base, tmp_path / "older")
    (older / "config.json").write_text('{"model_type": "older"}')
    repositories = {
        "org/base": {"main": base, "v1": older, "refs/pr/1": older},
        "somebody/french": {"main": adapter},
        "org/gguf": {"main": tmp_path / "gguf"},
    }
    put(tmp_path / "gguf", {"model-q4_0.gguf": b"GGUF", "config.json": b"{}"})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(repositories, tmp_path, monkeypatch) as asked:
        yield asked


@pytest.fixture
def wanted(tiny, tmp_path):
    """What a merge into the base itself gives."""
    assert run("merge", *tiny, "-o", tmp_path / "wanted").returncode == 0
    return snapshot(tmp_path / "wanted")


def cached(tmp_path):
    """The names of the files that were downloaded of the base."""
    (folder,) = (tmp_path / "home" / "hub" / "models--org--base" / "snapshots").iterdir()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_merge_with_nothing_here(hub, tmp_path, wanted, tiny):
    done = run("merge", "org/base", "somebody/french", "-o", "out")
    assert done.returncode == 0, done.stderr
    said = "not found here, looked up on the Hugging Face Hub\n"
    assert done.stderr.startswith(f"somebody/french: {said}")
    assert f"org/base: {said}" in done.stderr
    assert snapshot(Path("out")) == wanted
    assert cached(tmp_path) == {
        str(path.relative_to(tiny[0])) for path in tiny[0].rglob("*") if path.is_file()
    } - set(UNWANTED)
    asked = len(hub)
    done = run("verify", "out", "org/base", "somebody/french", "--json", HF_HUB_OFFLINE="1")
    assert (done.returncode, json.loads(done.stdout)["identical"]) == (0, True)
    said = "taken from the cache of the Hugging Face Hub; only files downloaded earlier are used\n"
    assert done.stderr.count(said) == 2
    assert len(hub) == asked


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["inspect", "{}", "--base", "org/base"], None),
        (["export", "lora", "{}", "--base", "org/base", "-o", "out"], "out/adapter_config.json"),
        (["merge", "org/base", "{}", "--each", "-o", "out"], "out/adapter/config.json"),
    ],
)
def test_every_command_takes_one(hub, tiny, command, output):
    done = run(*(word.format(tiny[1]) for word in command))
    assert done.returncode == 0, done.stderr
    assert "org/base: not found here, looked up" in done.stderr
    assert output is None or Path(output).is_file()


@pytest.mark.parametrize("given", [["org/base@v1"], ["org/base", "--revision", "v1"],
                                   ["org/base@refs/pr/1"]])  # fmt: skip
def test_a_revision(hub, tiny, given):
    done = run("merge", given[0], tiny[1], "-o", "out", *given[1:])
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("out/config.json").read_text()) == {"model_type": "older"}


def test_python_takes_ids_too(hub, tiny, wanted):
    program = f"""
import nola_edge as ne
ne.merge_checkpoint("org/base", {str(tiny[1])!r}, "out")
assert ne.verify_checkpoint("out", "org/base@main", {str(tiny[1])!r}).identical
with ne.open_merged("org/base", {str(tiny[1])!r}) as weights:
    assert len(weights) == 8
ne.export_lora({str(tiny[1])!r}, "org/base", "lora")
ne.merge_each("org/base", {{"one": {str(tiny[1])!r}}}, "each")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(Path("out")) == snapshot(Path("each/one")) == wanted


def refused(*arguments, **environment):
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert not any(Path().iterdir())
    return done.stderr.splitlines()[-1]


def test_what_cannot_be_had(hub, tiny):
    adapter = tiny[1]
    for base, message in {
        "org/none": "org/none: does not exist here and cannot be downloaded from the Hub: ",
        "org/base@v9": "org/base@v9: does not exist here and cannot be downloaded from the Hub: ",
        "org/gguf": "org/gguf: has no safetensors weights, but model-q4_0.gguf; download that file",
        "./org/base": "org/base: does not exist",
        "base": "base: does not exist",
    }.items():
        assert message in refused("merge", base, adapter, "-o", "out")


def test_offline_a_tokenizer_that_was_never_fetched_is_missed(hub, tiny, tmp_path):
    assert run("inspect", tiny[1], "--base", "org/base").returncode == 0
    (folder,) = (tmp_path / "home" / "hub" / "models--org--base" / "snapshots").iterdir()
    (folder / "tokenizer.json").unlink()
    done = run("merge", "org/base", "somebody/french", "-o", "out", HF_HUB_OFFLINE="1")
    assert "somebody/french: does not exist" in done.stderr
    done = run("merge", "org/base", tiny[1], "-o", "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("downloaded earlier are used, without a tokenizer file\n")


def test_offline_nobody_is_asked(hub, tiny):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        line = refused("merge", "org/base", tiny[1], "-o", "out", **{name: "1"})
        assert line == (
            "nola-edge: org/base: does not exist, nor is it in the cache of the Hugging Face Hub, "
            "which is not asked while HF_HUB_OFFLINE is set"
        )
    assert not hub


def test_a_mistyped_path_stays_here(hub, tiny, tmp_path):
    Path("org").mkdir()
    before = snapshot(tmp_path)
    done = run("merge", "org/base", tiny[1], "-o", "out")
    assert done.stderr == (
        "nola-edge: org/base: does not exist, but org does, so this is not a model on the Hugging "
        "Face Hub; correct the path\n"
    )
    assert snapshot(tmp_path) == before
    assert not hub


def test_an_adapter_that_is_not_there_is_said_before_a_base_is_fetched(hub):
    assert refused("merge", "org/base", "./absent", "-o", "out").endswith("absent: does not exist")
    assert "write -o out" in refused("merge", "org/base", "./absent", "-o", "out.safetensors")
    assert not hub


def test_a_base_that_is_here_has_no_revision(hub, tiny):
    line = refused("merge", *tiny, "--revision", "v1", "-o", "out")
    assert "--revision is for a base on the Hub, and " in line
    assert not hub


def test_one_file_of_weights_needs_no_index(tmp_path, monkeypatch):
    tensors = {"layers.0.q.weight": np.ones((48, 40), np.float32)}
    put(tmp_path / "served", {"config.json": b"{}", "other.bin": b""})
    write_safetensors(tmp_path / "served" / "model.safetensors", tensors)
    monkeypatch.chdir(tmp_path)
    program = "import nola_edge.files.hub as h; print(h.base_path('org/one'))"
    with serving({"org/one": {"main": tmp_path / "served"}}, tmp_path, monkeypatch):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    folder = done.stdout.strip()
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert load_all(folder).keys() == tensors.keys()


def test_without_huggingface_hub(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    from nola_edge.errors import CheckpointError
    from nola_edge.files.hub import base_path

    with pytest.raises(CheckpointError, match="pip install 'nola-edge\\[hub\\]'"):
        base_path("org/base")


def test_the_name_of_an_output_has_no_revision(tmp_path):
    from nola_edge.merge.many.output_names import name_outputs

    assert list(name_outputs(["somebody/french@v1", "somebody/german"])) == ["french", "german"]
