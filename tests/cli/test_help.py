"""What help looks like, and that what it teaches is true."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from nola_edge.cli.help import Group, HelpFormatter
from nola_edge.cli.main import cli
from tests.cli.in_process import call
from tests.cli.test_cli import run


def all_commands(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


COMMANDS = [(), *all_commands()]
each_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


def help_of(command, columns):
    # click leaves two columns free, but not where it is told the width.
    done = CliRunner().invoke(
        cli, [*command, "--help"], prog_name="nola-edge", terminal_width=columns - 2
    )
    assert done.exit_code == 0
    return done.stdout


@each_command
@pytest.mark.parametrize("columns", [60, 80])
def test_help_fits_and_breaks_no_word(command, columns):
    text = help_of(command, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text.isascii()
    words = [word for word in text.split() if word != "\\"]
    assert words == [word for word in help_of(command, 100).split() if word != "\\"]


@each_command
def test_every_example_is_understood(command):
    text = re.sub(r" \\\n *", " ", help_of(command, 60))
    for line in re.findall(r"^ *Example: (.*)$", text, re.MULTILINE):
        words = shlex.split(re.sub("[<()]", " ", line))
        words = words[words.index("nola-edge") + 1 :]
        current, context = cli, None
        while isinstance(current, click.Group):
            context = click.Context(current, parent=context)
            name, current, words = current.resolve_command(context, words)
        current.make_context(name, words, parent=context)  # raises what a user would be told


@pytest.mark.parametrize("asked", [["--help"], ["merge", "-h"], ["--version"]])
def test_help_waits_for_nothing_heavy(asked):
    code = f"""
import atexit, sys
from nola_edge.__main__ import main
atexit.register(lambda: print(*sys.modules))
sys.argv = ["nola-edge", *{asked!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1].split()
    assert "nola_edge.cli.main" in modules
    assert not {"numpy", "tqdm", "nola_edge.adapters", "tempfile"} & set(modules)


def test_a_long_command_goes_on_as_in_a_shell():
    formatter = HelpFormatter(width=40)
    formatter.write_text("Example: nola-edge do a-long-name --first x-y --second z -o out")
    assert formatter.getvalue().splitlines() == [
        "Example: nola-edge do a-long-name \\",
        "           --first x-y --second z -o out",
    ]
    formatter = HelpFormatter(width=40)
    formatter.write_text('To ship it, write it as one file: -o my.nola, or say "pack A -o B".')
    assert formatter.getvalue().splitlines() == [
        "To ship it, write it as one file:",
        '-o my.nola, or say "pack A -o B".',
    ]
    formatter = HelpFormatter(width=40)
    formatter.write_text("Example: nola-edge verify ./merged ./Llama-3-8B adapter")
    assert formatter.getvalue().splitlines() == [
        "Example: nola-edge verify ./merged \\",
        "           ./Llama-3-8B adapter",
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["mrge"], "No such command 'mrge'. Did you mean 'merge'?"),
        (["quantise", "x"], "No such command 'quantise'. Did you mean 'quantize'?"),
        (["xyz"], "No such command 'xyz'. (see nola-edge --help)"),
        (["export", "lroa"], "No such command 'lroa'. Did you mean 'lora'?"),
        (["merge", "--trheads"], "No such option '--trheads'. Did you mean '--threads'?"),
    ],
)
def test_a_name_that_is_none_gets_a_suggestion(typed, said):
    done = run(*typed)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_group_says_all_of_what_its_commands_do():
    group = Group(commands=[click.Command("one", help=f"Do this {'and this ' * 12}too.\n\nMore.")])
    text = CliRunner().invoke(group, ["--help"], terminal_width=58).stdout
    assert " ".join(text.split()).endswith("and this and this too.")


def test_the_version_has_a_short_name():
    assert call("-V").stdout == call("--version").stdout != ""
