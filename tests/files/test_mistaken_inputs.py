"""What is given by mistake for a base or an adapter is refused with what to give instead."""

import os
import pickle
import shlex
import shutil

import pytest

import nola_edge as ne
from nola_edge.errors import NolaEdgeError, OutputError
from nola_edge.gguf import merge_gguf
from tests.cli.in_process import refused
from tests.conftest import snapshot

NO_ADAPTER = "is not an adapter: give its folder or a packed .nola file"


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(40), pickle.dumps({"a": [1.5] * 9})])
@pytest.mark.parametrize("name", ["pytorch model.bin", "model.pt"])
def test_a_torch_file_comes_with_the_command_that_converts_it(here, data, name):
    (here / name).write_bytes(data)
    before = snapshot(here)
    for command in (
        ["merge", name, "adapter", "-o", "out.safetensors"],
        ["merge", "base", name, "-o", "out"],
        ["verify", name, "base", "adapter"],
        ["inspect", name],
    ):
        line = refused(*command)
        assert (
            f"nola-edge: {name}: is a file written by torch.save, which can run code and is "
            in line
        )
        assert "run: python -c 'import sys, torch; " in line
        made = shlex.quote(name.rpartition(".")[0] + ".safetensors")
        assert line.endswith(f"' {shlex.quote(name)}; then: give {made}\n")
    assert snapshot(here) == before


def test_an_adapter_of_torch(here):
    (here / "adapter" / "adapter_model.safetensors").unlink()
    (here / "adapter" / "adapter_model.bin").write_bytes(b"PK\x03\x04" + bytes(40))
    line = refused("merge", "base", "adapter", "-o", "out")
    assert "adapter/adapter_model.bin: is a file written by torch.save" in line
    assert line.endswith("adapter/adapter_model.bin; then: give adapter\n")


@pytest.mark.parametrize("given", ["base", "adapter"])
@pytest.mark.parametrize("refs", [True, False])
def test_a_repository_of_the_cache(here, given, refs):
    root = here / "hub" / "models--org--name"
    for commit in ("0" * 40, "f" * 40):
        shutil.copytree(here / given, root / "snapshots" / commit)
    if refs:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("0" * 40)
    names = {"base": "base", "adapter": "adapter", given: str(root)}
    before = snapshot(here)
    line = refused("merge", names["base"], names["adapter"], "-o", "out")
    assert line == (
        f"nola-edge: {root}: is a repository of the Hugging Face cache; give one of its snapshots, "
        f"such as {root}/snapshots/{('0' if refs else 'f') * 40}\n"
    )
    assert snapshot(here) == before


@pytest.mark.parametrize("place", ["model", "adapter2"])
@pytest.mark.parametrize("options", [{}, {"force": True}, {"skip_existing": True}])
def test_outputs_of_each_do_not_go_into_a_model(here, place, options):
    shutil.copytree(here / ("base" if place == "model" else "adapter"), here / place)
    before = snapshot(here)
    with pytest.raises(OutputError, match="is a model or an adapter itself; give a folder"):
        ne.merge_each("base", ["adapter"], place, **options)
    assert snapshot(here) == before


def test_errors_are_of_one_kind(here):
    (here / "x.bin").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(NolaEdgeError, match=r"torch\.save"):
        ne.open_merged("x.bin", "adapter")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF" + bytes(40), "is a GGUF file, not an adapter"),
        (
            b'{"prompt": "a text"}\n' * 9,
            "is not an adapter: give its folder or a packed .nola file",
        ),
        (b"{}\n", "is not an adapter: give its folder or a packed .nola file"),
    ],
)
def test_another_file_in_the_place_of_an_adapter(here, data, message):
    (here / "given.json").write_bytes(data)
    before = snapshot(here)
    for command in (
        ["inspect", "given.json"],
        ["merge", "base", "given.json", "-o", "out"],
        ["pack", "given.json", "-o", "out.nola"],
        ["verify", "base", "base", "given.json"],
    ):
        assert refused(*command) == f"nola-edge: given.json: {message}\n"
    assert snapshot(here) == before


def test_a_model_in_the_place_of_an_adapter(here):
    before = snapshot(here)
    said = "nola-edge: base: holds a model, not an adapter"
    assert refused("inspect", "base") == f"{said}\n"
    assert refused("pack", "base", "-o", "out.nola") == f"{said}\n"
    line = refused("verify", "merged", "adapter", "base")
    assert line == f"{said} (the order is MERGED BASE ADAPTER)\n"
    (here / "base" / "config.json").unlink()
    assert refused("inspect", "base") == f"{said}\n"
    (here / "base" / "config.json").write_text("{}")
    assert snapshot(here).keys() == before.keys()


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("x.safetensors", "merge x.safetensors adapter -o out.safetensors"),
        ("x.gguf", "merge x.gguf adapter -o out.gguf"),
        ("x.nola", "merge base x.nola -o out"),
        ("base/model-00001-of-00003.safetensors", "merge base adapter -o out"),
        ("base/model.safetensors.index.json", "merge base adapter -o out"),
        ("adapter/adapter_config.json", "merge base adapter -o out"),
        ("adapter/adapter_model.safetensors", "inspect adapter"),
    ],
)
def test_a_pointer_of_git_lfs(here, name, command):
    (here / name).write_text(POINTER)
    before = snapshot(here)
    advice = "is a Git LFS pointer, not the file itself; run git lfs pull in its repository"
    assert refused(*command.split()) == f"nola-edge: {name}: {advice}\n"
    assert snapshot(here) == before


def test_a_pointer_given_to_the_reader_of_gguf(here):
    (here / "x.gguf").write_text(POINTER)
    with pytest.raises(NolaEdgeError, match=r"x\.gguf: is a Git LFS pointer"):
        merge_gguf("x.gguf", "adapter", "out.gguf")
    assert not (here / "out.gguf").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes, too few for a GGUF file; it is truncated"),
        (b"GGU", "has 3 bytes, too few for a GGUF file; it is truncated"),
        (b"<html>not found", "is not a GGUF file: it does not begin with GGUF"),
    ],
)
def test_what_is_only_called_gguf(here, data, message):
    """What is wrong with the base is said before what to call the output."""
    (here / "x.gguf").write_bytes(data)
    before = snapshot(here)
    for output in ("out.gguf", "out.safetensors"):
        assert refused("merge", "x.gguf", "adapter", "-o", output) == (
            f"nola-edge: x.gguf: {message}\n"
        )
    assert snapshot(here) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_in_the_place_of_an_adapter_s_file(here, name):
    (here / "adapter" / name).unlink()
    os.mkfifo(here / "adapter" / name)
    line = f"nola-edge: adapter/{name}: is not a regular file\n"
    assert refused("merge", "base", "adapter", "-o", "out") == line
    assert not (here / "out").exists()


@pytest.mark.parametrize("command", ["merge base adapter", "pack adapter", "export lora adapter"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_device_is_not_advised_to_be_removed(here, command, force):
    base = ["--base", "base"] if "export" in command else []
    line = refused(*command.split(), *base, "-o", os.devnull, *force)
    assert (
        line == f"nola-edge: {os.devnull}: is a device, and never replaced; choose another name\n"
    )
