"""What scripts get: one JSON value on stdout, errors too, or with --quiet nothing but a status."""

import json
import os
import subprocess
import sys

import click
import pytest

from nola_edge.cli.main import cli
from tests.cli.in_process import Done, call, refused
from tests.conftest import snapshot


def commands(tiny, tmp_path):
    """Every command that leaves something, with its output's place."""
    base, adapter = tiny
    return {
        "merge": ["merge", base, adapter, "-o", tmp_path / "merged"],
        "each": ["merge", base, adapter, "--each", "-o", tmp_path / "each"],
        "quantize": ["quantize", adapter, "-o", tmp_path / "small"],
        "pack": ["pack", adapter, "-o", tmp_path / "a.nola"],
        "unpack": ["unpack", tmp_path / "given.nola", "-o", tmp_path / "again"],
        "lora": ["export", "lora", adapter, "--base", base, "-o", tmp_path / "lora"],
    }


NAMES = list(commands(("", ""), type("Any", (), {"__truediv__": lambda *_: ""})()))


@pytest.fixture
def command(request, tiny, tmp_path):
    call("pack", tiny[1], "-o", tmp_path / "given.nola")
    return commands(tiny, tmp_path)[request.param]


@pytest.mark.parametrize("command", NAMES, indirect=True)
def test_json_names_the_output_and_its_bytes(command):
    done = call(*command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for report in found if isinstance(found, list) else [found]:
        assert report["output"].startswith(str(command[-1]))
        assert report["bytes"] > 0
        assert "nbytes" not in report


@pytest.mark.parametrize("command", NAMES, indirect=True)
def test_quiet_says_nothing(command):
    for option in ("-q", "--quiet"):
        done = call(*command, option, *["--force"] * (option == "--quiet"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert command[-1].exists()


@pytest.mark.parametrize("command", NAMES, indirect=True)
def test_a_refusal_in_json(command, tmp_path):
    assert call(*command).returncode == 0
    before = snapshot(tmp_path)
    done = call(*command, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"type", "message", "file", "field", "value"}
    assert error["type"] == "OutputError"
    assert error["message"].startswith("exists already")
    assert error["file"].startswith(str(command[-1]))
    assert done.stderr == f"nola-edge: {error['file']}: {error['message']}\n"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "kind", "field", "message"),
    [
        (["merge", "base", "--json"], "UsageError", "ADAPTER...", "Missing argument"),
        (["merge", "--json", "base", "a"], "UsageError", "--output", "Missing option"),
        (["pack", "a", "-o", "b.nola", "--bits", "3", "--json"], "UsageError", "--bits", "No such"),
        (["merge", "a", "b", "-o", "c", "--threads", "0", "--json"], "UsageError", "--threads", ""),
        (["inspect", "absent", "--json"], "AdapterError", None, "does not exist"),
        (["info", "--json", "extra"], "UsageError", None, "unexpected extra argument"),
        (["nonsense", "--json"], "UsageError", None, "No such command"),
        (["export", "--json"], "UsageError", "--json", "No such option"),
        (["inspect", "a", "--json=1"], "UsageError", "--json", "does not take a value"),
        (["inspect", "a", "--revision", "x", "--json"], "UsageError", None, "no --base was given"),
        (["demo", "--keep", "-", "--json"], "OutputError", None, "write --keep NAME"),
    ],
)
def test_wrong_calls_in_json(arguments, kind, field, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.returncode == 2
    assert not os.listdir(tmp_path)
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["field"]) == (kind, field)
    assert message in error["message"]
    assert done.stderr.startswith("nola-edge: ")
    assert done.stderr.count("\n") == 1


def test_what_is_not_ours_is_no_traceback_in_json_either(tmp_path, monkeypatch):
    monkeypatch.setattr("nola_edge.build_info", (tmp_path / "none").read_bytes)
    error = json.loads(call("info", "--json").stdout)["error"]
    assert error["type"] == "FileNotFoundError"
    assert error["file"] == str(tmp_path / "none")
    assert error["message"] == "No such file or directory"


def test_the_name_of_a_file_is_no_wish_for_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--json: does not exist" in refused("inspect", "--", "--json")


def test_an_error_in_json_that_nobody_reads():
    """The status is that of the error, and there is no traceback."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nola_edge", "inspect", "absent", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 2
    assert done.stderr == "nola-edge: absent: does not exist\n"


def every_command(group=cli, words=()):
    """Yield the words that name each command, and the command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*words, name))
        else:
            yield (*words, name), command


@pytest.mark.parametrize(
    ("words", "command"), [pair for pair in every_command() if pair[0] != ("completion",)]
)
def test_every_command_has_both_options(words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name for option in command.params for name in option.opts}
    assert {"--json", "-q", "--quiet"} <= names
    for option in ("-q", "--quiet"):
        done = call(*words, option, "--absent")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "No such option" in done.stderr
    done = call(*words, "-q", "--json", "--absent")
    assert json.loads(done.stdout)["error"]["field"] == "--absent"


@pytest.mark.parametrize("words", [["info"], ["inspect", "adapter", "--base", "base"]])
def test_what_only_shows_is_quiet_too(words, tiny, monkeypatch):
    monkeypatch.chdir(tiny[0].parent)
    assert call(*words, "-q") == Done(0, "", "")
    assert json.loads(call(*words, "-q", "--json").stdout)
