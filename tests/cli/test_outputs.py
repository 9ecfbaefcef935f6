"""A name that says another output than there will be is refused with the name to write."""

import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.in_process import call, refused
from tests.conftest import load_all, snapshot, write_safetensors
from tests.gguf.test_merge import adapter_of, arrays_of, write


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    """A folder with a base of each kind, an adapter, and a packed one."""
    monkeypatch.chdir(tmp_path)
    shard = next(tiny[0].glob("*1-of*"))
    shutil.copy(shard, "one.safetensors")
    call("pack", "adapter", "-o", "packed.nola")
    (tmp_path / "there").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "output", "instead"),
    [
        ("merge base adapter", "x.safetensors", "x"),
        ("merge base adapter", "x.gguf", "x"),
        ("merge base adapter", "a b.bin", "a b"),
        ("merge base adapter --each", "x.safetensors", "x"),
        ("merge one.safetensors adapter", "x", "x.safetensors"),
        ("merge one.safetensors adapter", "x.gguf", "x.safetensors"),
        ("merge one.safetensors adapter", "x.v1", "x.v1.safetensors"),
        ("merge one.safetensors adapter", "there", "there/one.safetensors"),
        ("merge one.safetensors adapter", "new/", "new/one.safetensors"),
        ("quantize adapter", "x.safetensors", "x"),
        ("quantize adapter", "x.gguf", "x"),
        ("pack adapter", "x", "x.nola"),
        ("pack adapter", "x.safetensors", "x.nola"),
        ("pack adapter", "there", "there/adapter.nola"),
        ("unpack packed.nola", "x.nola", "x"),
        ("export lora adapter --base base", "x.safetensors", "x"),
        ("export gguf-lora adapter --base base", "x", "x.gguf"),
        ("export gguf-lora adapter --base base", "there", "there/adapter.gguf"),
        ("convert base", "x.safetensors", "x"),
    ],
)
def test_another_kind_of_output(here, command, output, instead):
    before = snapshot(here)
    line = refused(*command.split(), "-o", output)
    assert line.startswith(f"nola-edge: {output}: ")
    assert line.endswith(f"; write -o {shlex.quote(instead)}\n")
    assert snapshot(here) == before


@pytest.mark.parametrize(
    "command",
    ["merge base adapter", "merge base adapter --each", "merge one.safetensors adapter",
     "quantize adapter", "pack adapter", "unpack packed.nola", "export lora adapter --base base",
     "export gguf-lora adapter --base base", "convert base"],
)  # fmt: skip
def test_standard_output_is_no_place(here, command):
    before = snapshot(here)
    line = refused(*command.split(), "-o", "-")
    assert "cannot be written to standard output" in line
    assert snapshot(here) == before


@pytest.mark.parametrize("output", ["Llama-3.1-8B", "x.y", "./-"])
def test_folders_may_have_dots(here, output):
    assert call("merge", "base", "adapter", "-o", output).returncode == 0
    assert Path(output, "config.json").exists()


@pytest.mark.parametrize("command", ["merge base adapter", "unpack packed.nola"])
def test_a_folder_that_is_there_may_be_called_so(here, command):
    os.mkdir("x.gguf")
    assert call(*command.split(), "-o", "x.gguf", "--force").returncode == 0


def test_quantize_packs_in_one_go(here):
    done = call("quantize", "adapter", "--bits", "4", "-o", "new/small.nola")
    assert done.stdout.startswith("new/small.nola: 60 coefficients of 4 bits, ")
    assert done.stdout.count("\n") == 1
    call("quantize", "adapter", "--bits", "4", "-o", "small")
    call("pack", "small", "-o", "two.nola")
    assert Path("new/small.nola").read_bytes() == Path("two.nola").read_bytes()
    before = snapshot(here)
    assert "exists already" in refused("quantize", "adapter", "-o", "new/small.nola")
    assert "is an input" in refused("quantize", "two.nola", "-o", "two.nola", "--force")
    assert snapshot(here) == before


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs /proc")
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("merge base adapter", "/proc/x"),
        ("merge base adapter", "/proc/x/y"),
        ("merge base adapter --each", "/proc/x"),
        ("pack adapter", "/proc/self/x.nola"),
        ("export lora adapter --base base", "/proc/x"),
    ],
)
def test_below_proc_the_place_is_what_is_wrong(here, command, output):
    """Not the space there, of which there is none, nor a folder that does not exist."""
    line = refused(*command.split(), "-o", output)
    assert "lies in a proc file system, which holds no files; choose another place" in line


@pytest.mark.parametrize(
    ("command", "output", "reason"),
    [
        ("merge base adapter", "base", "is an input; inputs are never changed"),
        ("merge base adapter", "link", "is an input"),
        ("merge base adapter", "adapter", "is an input"),
        ("merge base adapter", "base/sub", "lies inside the input base"),
        ("merge base adapter", ".", "contains the input base"),
        (
            "merge base adapter",
            "loop",
            "is a symbolic link, and never replaced; choose another name",
        ),
        ("merge all.safetensors adapter", "all.safetensors", "is an input"),
        ("merge model.gguf nola", "model.gguf", "is an input"),
        ("merge base adapter --each", "base", "lies inside the input base"),
        ("merge base adapter --each", ".", "is an input"),
        ("export lora adapter --base base", "adapter", "is an input"),
        ("export lora adapter --base base", "base", "is an input"),
    ],
)
def test_what_is_said_first_of_an_output_that_is_an_input(here, command, output, reason):
    """That it exists already would advise --force."""
    write_safetensors(here / "all.safetensors", load_all(here / "base"))
    if "gguf" in command:
        write(here / "model.gguf", arrays_of("F16"))
        adapter_of().save(here / "nola")
    (here / "link").symlink_to("base")
    (here / "loop").symlink_to("loop")
    before = snapshot(here)
    assert reason in refused(*command.split(), "-o", output)
    assert snapshot(here) == before
