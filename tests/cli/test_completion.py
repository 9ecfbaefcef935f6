"""Completion, in the shells that are installed here, typed in a pseudo-terminal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.cli.test_cli import run

SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "source <(nola-edge completion bash)",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit && compinit -D -u; source <(nola-edge completion zsh)",
    ),
    "fish": (["fish", "--no-config", "-i"], "nola-edge completion fish | source"),
}
NOLA_EDGE = shutil.which("nola-edge", path=Path(sys.executable).parent)
CLEAR_LINE = "\x15"


@pytest.fixture(params=SHELLS)
def terminal(request, tmp_path):
    command, setup = SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {request.param}")
    if NOLA_EDGE is None:
        pytest.skip("needs the script nola-edge beside this Python")
    for folder in ("banana split", "basket", "adapter-a"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model.gguf").touch()
    path = f"{Path(NOLA_EDGE).parent}{os.pathsep}{os.environ['PATH']}"
    with Terminal(command, tmp_path, PATH=path, HOME=str(tmp_path), SHELL=command[0]) as shell:
        shell.type(f"{setup}; echo REA''DY\n")
        shell.expect("READY")
        shell.shell = request.param
        yield shell


def test_commands_options_choices_and_paths(terminal):
    for typed, shown in (
        ("nola-edge mer\t", "nola-edge merge "),
        ("nola-edge merge ban\t", "banana\\ split/"),
        ("nola-edge merge basket ada\t", "basket adapter-a/"),
        ("nola-edge merge mod\t", "merge model.gguf "),
        ("nola-edge merge basket adapter-a=0.5 ada\t", "adapter-a=0.5 adapter-a/"),
        ("nola-edge merge --thr\t", "--threads "),
        ("nola-edge merge --outtype q8\t", "--outtype q8_0 "),
        ("nola-edge export gg\t", "export gguf-lora "),
        ("nola-edge export lora adapter-a -o bas\t", "-o basket/"),
    ):
        terminal.type(CLEAR_LINE + typed)
        terminal.expect(shown)


def test_the_value_after_an_equals_sign(terminal):
    terminal.type("nola-edge merge --outtype=q8\t")
    terminal.expect("q8_0")
    terminal.type("\x01echo '<\x05>'\n")  # at the front, at the end
    terminal.expect("\n<nola-edge merge --outtype=q8_0")


def test_a_path_after_an_equals_sign(terminal):
    if terminal.shell == "fish":
        pytest.skip("fish leaves paths after --base= alone; it offers them after --base")
    terminal.type("nola-edge export lora adapter-a --base=bas\t")
    terminal.expect("--base=basket/")


def ask(*words, program=("-m", "nola_edge")):
    """Ask as the script for bash does."""
    environment = {
        "_NOLA_EDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["nola-edge", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("inspect x", "file"),
        ("inspect adapter --base x", "file"),
        ("verify x", "file"),
        ("verify merged --base x", "file"),
        ("verify merged --base b --adapter a --adapter x", "file"),
        ("quantize x", "file"),
        ("pack adapter -o x", "file"),
        ("unpack x", "file"),
        ("unpack adapter.nola -o x", "dir"),
        ("export lora adapter --base x", "file"),
        ("export lora adapter -o x", "dir"),
        ("export gguf-lora a b=0.5 x", "file"),
        ("convert x", "file"),
        ("convert checkpoint --check x", "file"),
    ],
)
def test_a_path_is_left_to_the_shell(words, kind):
    assert ask(*words.split(" ")).stdout == f"{kind},x\n"


def test_a_shell_that_asks_waits_for_nothing_heavy():
    code = """
import atexit, sys
from nola_edge.__main__ import main
atexit.register(lambda: print(*sys.modules))
main()
"""
    done = ask("merge", "ba", program=["-c", code])
    answer, modules = done.stdout.splitlines()
    assert answer == "file,ba"
    assert "nola_edge.cli.merge_command" in modules.split()
    heavy = {"numpy", "nola_edge.cli.inspect_command", "nola_edge.adapters", "tqdm"}
    assert not heavy & set(modules.split())


def test_every_command_is_offered_with_what_it_does():
    done = run(_NOLA_EDGE_COMPLETE="fish_complete", COMP_WORDS="nola-edge ", COMP_CWORD="")
    assert "plain,verify\tCheck a merged checkpoint bit for bit.\n" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_what_the_shell_reads(shell):
    done = run("completion", shell)
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"_NOLA_EDGE_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        (["tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        ([], "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish"),
    ],
)
def test_no_shell_of_ours_is_refused(shell, said):
    done = run("completion", *shell)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
