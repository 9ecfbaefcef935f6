"""What the program says of itself, and of command lines that it cannot understand."""

import json
import subprocess

import pytest

import nola_edge
from tests.conftest import default_signals, tiny_adapter, unread_pipe


def test_version_and_help(nola):
    assert nola("--version").stdout == f"nola, version {nola_edge.__version__}\n"
    whole = nola("--help")
    assert whole.returncode == 0
    for command in ("inspect", "hash"):
        assert command in whole.stdout
        shown = nola(command, "--help", COLUMNS="60")
        assert shown.returncode == 0
        assert shown.stdout.startswith(f"Usage: nola {command} [OPTIONS] ")
        assert max(map(len, shown.stdout.splitlines())) <= 80
    nothing = nola()
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (2, "", whole.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["hash"],
        ["hash", "a", "b"],
        ["hash", "a", "--threads", "0"],
        ["hash", "a", "--threads", "x"],
        ["hash", "a", "--threads"],
        ["hash", "a", "--quiet=1"],
        ["hash", "a", "--nonsense"],
        ["hash", "-qx", "a"],
        ["nonsense"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_words_of_usage_errors(nola, python_tool, arguments):
    wanted = python_tool.refused(*arguments).replace("nola-edge", "nola")
    assert nola.refused(*arguments) == wanted


@pytest.mark.parametrize("command", ["verify", "pack", "convert", "demo", "info"])
def test_commands_of_the_package_alone(nola, command):
    said = nola.refused(command, "a")
    assert said.startswith(f"{command} is not in this program; use nola-edge {command} of the")


@pytest.mark.parametrize("option", ["--base", "--rename", "--drawn-on"])
def test_options_of_the_package_alone(nola, option):
    said = nola.refused("inspect", "a", option, "b")
    assert said.startswith(f"{option} is not in this program; use nola-edge inspect of the")


def test_errors_as_json(nola, python_tool, tmp_path):
    for tool in (nola, python_tool):
        done = tool("hash", "--json", tmp_path / "nothing")
        assert done.returncode == 2
        error = json.loads(done.stdout)["error"]
        assert error["type"] == "FormatError"
        assert error["file"] == str(tmp_path / "nothing")
        usage = json.loads(tool("hash", "--json").stdout)["error"]
        assert (usage["type"], usage["field"]) == ("UsageError", "PATH")


def test_a_full_standard_output(nola, tmp_path):
    (tmp_path / "file").write_text("x")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*nola.command, "hash", tmp_path / "file"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "standard output cannot be written: No space left" in done.stderr


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "full"])
def test_a_standard_error_that_nobody_reads_changes_no_status(nola, tiny, tmp_path, closed):
    tiny_adapter().pack(tmp_path / "a.nola")
    for words, status in ((["merge", tiny[0], f"{tmp_path / 'a.nola'}=0", "-o", tmp_path / "o"], 0),
                          (["merge", tiny[0], "nowhere", "-o", tmp_path / "p"], 2)):  # fmt: skip
        done = subprocess.run([*nola.command, *map(str, words)], stdout=subprocess.DEVNULL,
                              stderr=unread_pipe(closed), preexec_fn=default_signals)  # fmt: skip
        assert done.returncode == status
    assert (tmp_path / "o").exists()
