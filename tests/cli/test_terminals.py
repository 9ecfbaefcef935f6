"""What commands print in narrow terminals and in such as know only ASCII."""

import sys

import pytest

from nola_edge.cli import layout
from tests.cli.terminal import Terminal
from tests.cli.test_cli import run

COMMANDS = [
    "merge base adapter -o a/rather/deeply/nested/folder/for/the/merged/model",
    "merge base adapter adapter=0.5 -o two --no-check-base",
    "merge base adapter small --each -o each",
    "verify a/rather/deeply/nested/folder/for/the/merged/model base adapter",
    "verify base base adapter",
    "quantize adapter --bits 4 -o small4",
    "pack adapter -o packed.nola",
    "unpack packed.nola -o unpacked",
    "export lora adapter --base base -o lora",
    "inspect adapter --base base --modules",
    "merge --help",
    "info",
]


def in_a_terminal(command, cwd, columns, **environment):
    words = [sys.executable, "-m", "nola_edge", *command.split()]
    with Terminal(words, cwd, size=(24, columns), **environment) as terminal:
        return terminal.rest()


@pytest.mark.parametrize("columns", [60, 80])
def test_lines_fit_and_break_between_words(tiny, tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base" / "adapter_config.json").write_text("{}")  # not carried over
    run("quantize", "adapter", "-o", "small")
    for number, command in enumerate(COMMANDS):
        environment = {"PYTHONIOENCODING": "ascii"} if number % 2 else {}
        shown = in_a_terminal(command, tmp_path, columns, **environment)
        assert shown
        assert max(map(len, shown.splitlines())) <= columns, shown
        assert "?" not in shown
        assert shown.isascii() or not environment


def test_a_pipe_gets_whole_lines(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*COMMANDS[0].split(), COLUMNS="60")
    assert done.stdout.count("\n") == 2
    assert max(map(len, done.stdout.splitlines())) > 60


def test_signs_that_an_encoding_lacks():
    assert "… 2 × 3 ≤ 7 – ü".encode("ascii", "nola_edge.in_ascii") == b"... 2 x 3 <= 7 - ?"
    done = run("verify", "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "?" not in done.stdout


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("nola-edge merge --no-check-base", ["nola-edge merge", "--no-check-base"]),
        ("a/path/that/is/longer/than/a/line", ["a/path/that/is/", "longer/than/a/line"]),
        (f"run {layout.whole('nola-edge pack small -o x.nola')}",
         ["run", "nola-edge pack small -o x.nola"]),
        ("", [""]),
    ],
)  # fmt: skip
def test_where_lines_end(text, lines):
    assert layout.wrap(text, 18) == lines
