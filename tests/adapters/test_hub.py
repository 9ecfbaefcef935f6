"""A path that does not exist is looked up on the Hub only where it cannot be a mistyped one."""

import shutil

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.errors import ArgumentError
from tests.cli.test_cli import run
from tests.conftest import snapshot, tiny_adapter, write_safetensors
from tests.hub import serving

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one adapter, somebody/french, and a list of what it was asked."""
    tiny_adapter().save(tmp_path / "served")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(
        {"somebody/french": {"main": tmp_path / "served"}}, tmp_path, monkeypatch
    ) as asked:
        yield asked


def refused(*arguments, **environment):
    """Run a command that is refused; return the lines on stderr."""
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(line.isprintable() for line in done.stderr.splitlines())
    return done.stderr.splitlines()


COMMANDS = [
    ["inspect", "{}"],
    ["pack", "{}", "-o", "out.nola"],
    ["merge", "base", "{}=0.5", "-o", "out.safetensors"],
    ["export", "lora", "{}", "--base", "base", "-o", "out"],
]


@pytest.mark.parametrize(
    ("command", "kind"),
    [*((c, "folder") for c in COMMANDS), (COMMANDS[0], "file"), (COMMANDS[0], "dangling link")],
)
def test_a_mistyped_path_stays_here(hub, tmp_path, command, kind):
    here = tmp_path / "here"
    if kind == "folder":
        (here / "somebody").mkdir()
    elif kind == "file":
        (here / "somebody").write_bytes(b"")
    else:
        (here / "somebody").symlink_to(here / "nothing")
    write_safetensors(here / "base", {"w": np.ones(3, np.float32)})
    before = snapshot(here)
    (line,) = refused(*(word.format("somebody/french") for word in command))
    assert line == (
        "nola-edge: somebody/french: does not exist, but somebody does, so this is not an adapter "
        "on the Hugging Face Hub; correct the path"
    )
    assert not hub
    assert snapshot(here) == before


@pytest.mark.parametrize("location", ["./french", "../french", "french", "a/b/c", "-a/b", "a/b/"])
def test_what_is_no_id_is_never_looked_up(hub, location):
    (line,) = refused("inspect", "--", location)
    assert line == f"nola-edge: {location}: does not exist"
    assert not hub


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nobody_is_asked(hub, name):
    (line,) = refused("inspect", "somebody/french", **{name: "1"})
    assert line == (
        "nola-edge: somebody/french: does not exist, nor is it in the cache of the Hugging Face "
        "Hub, which is not asked while HF_HUB_OFFLINE is set"
    )
    assert not hub


def test_one_line_says_that_the_hub_is_asked(hub):
    said, error = refused("inspect", "somebody/absent")
    assert said == "somebody/absent: not found here, looked up on the Hugging Face Hub"
    assert error.startswith(
        "nola-edge: somebody/absent: does not exist here and cannot be downloaded"
    )
    assert hub


def test_a_download_and_then_its_cache(hub, tmp_path):
    done = run("inspect", "somebody/french")
    assert done.returncode == 0, done.stderr
    assert "somebody/french: not found here, looked up on the Hugging Face Hub\n" in done.stderr
    count = len(hub)
    assert count
    again = run("inspect", "somebody/french", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stderr == (
        "somebody/french: not found here, taken from the cache of the Hugging Face Hub; only files "
        "downloaded earlier are used\n"
    )
    assert again.stdout == done.stdout
    assert len(hub) == count
    shutil.rmtree(tmp_path / "home")
    refused("inspect", "somebody/french", HF_HUB_OFFLINE="1")


def test_what_is_here_wins_without_a_word(hub, tmp_path):
    (tmp_path / "here" / "somebody").mkdir()
    tiny_adapter().save(tmp_path / "here" / "somebody" / "french")
    done = run("inspect", "somebody/french")
    assert (done.returncode, done.stderr) == (0, "")
    assert not hub


def test_a_revision_belongs_to_the_id(hub, tmp_path):
    done = run("inspect", "somebody/french@main", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(
        "somebody/french@main: not found here, looked up on the Hugging Fac"
    )
    assert any("revision/main" in path for path in hub)
    (error,) = refused("inspect", "somebody/french@none")[1:]
    assert error.startswith("nola-edge: somebody/french@none: does not exist here and cannot be do")
    done = run("merge", "base.safetensors", "somebody/french@main=0.5", "-o", "out.safetensors")
    assert done.stderr.splitlines()[-1] == "nola-edge: base.safetensors: does not exist"


@pytest.mark.parametrize("location", ["a/b@", "a/b@../c", "a/b@x y", "a@b", "a/b@c@d"])
def test_what_is_no_revision_is_never_looked_up(hub, location):
    (line,) = refused("inspect", location)
    assert line == f"nola-edge: {location}: does not exist"
    assert not hub


def test_two_revisions_contradict_each_other(hub):
    with pytest.raises(ArgumentError, match="revision: is 'v2', but somebody/french@v1 has anoth"):
        Adapter.load("somebody/french@v1", revision="v2")
    assert not hub
