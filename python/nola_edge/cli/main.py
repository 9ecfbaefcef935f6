"""Entry point: the group of commands, and how errors and signals end the program."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nola_edge import __version__
from nola_edge.cli.help import Group
from nola_edge.cli.layout import MAX_WIDTH, say
from nola_edge.cli.streams import Stdout, open_closed_streams, replace_stderr, replace_stdout
from nola_edge.errors import NolaEdgeError, NolaEdgeWarning
from nola_edge.pacing import end_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from click.shell_completion import CompletionItem

_COMMANDS = {
    "merge": "Merge adapters into a checkpoint and write the result.",
    "inspect": "Show what an adapter holds.",
    "verify": "Check a merged checkpoint bit for bit.",
    "hash": "Print the SHA-256 of a result.",
    "quantize": "Store an adapter's coefficients in fewer bits.",
    "pack": "Write an adapter as one small file.",
    "unpack": "Turn a packed adapter into a folder.",
    "export": "Write an adapter in the format of another program.",
    "convert": "Old name of export lora, for checkpoints of the public NOLA code.",
    "demo": "See a small model answer with and without adapters.",
    "info": "Show the version, instruction sets and threads.",
    "completion": "Print a script that completes commands in your shell.",
}


#: In the environment when a shell asks; completion_command.py answers.
_COMPLETE = "_NOLA_EDGE_COMPLETE"

#: Commands that leave their result on disk; the others print it.
_WRITING = ("merge", "quantize", "pack", "unpack", "export", "convert")


class _LazyGroup(Group):
    """Imports a command's module when it is run, so that --help stays quick."""

    #: The command that has been run to its end.
    done: str | None = None

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        self.done = ctx.invoked_subcommand
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module = importlib.import_module(f"nola_edge.cli.{cmd_name}_command")
            self.add_command(module.command)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from nola_edge.cli.completion_command import commands

        return [
            *commands(_COMMANDS, incomplete),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
    epilog="Start with: nola-edge demo",
)
@click.version_option(__version__, "-V", "--version", prog_name="nola-edge")
def cli() -> None:
    """Merge NOLA, LoRA and other low-rank adapters, with the same bits on every machine."""


class _Terminated(BaseException):
    """SIGTERM or SIGHUP, handled like Ctrl-C so that temporaries are removed.

    No KeyboardInterrupt, which click would turn into an exception of its own.
    """


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    error = KeyboardInterrupt() if number == signal.SIGINT else _Terminated(number)
    end_with(error)
    raise error


def _handle_signals() -> None:
    """Have signals clean up before they end the program; nohup ignores SIGHUP, and it stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: (
        None if isinstance(lost.exc_value, KeyboardInterrupt | _Terminated) else report(lost)
    )


def _die_of(number: int) -> NoReturn:
    """End as an unhandled signal would, so that shells and supervisors see which it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)


def _exit(status: int, stdout: Stdout | None) -> NoReturn:
    """End with a status. Even if standard output is full, a result on disk is complete."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if stdout is None or stdout.error is None:
        raise SystemExit(status)
    said = f"standard output cannot be written: {stdout.error.strerror}"
    written = cli.done in _WRITING
    print(f"nola-edge: {said}{'; the result itself is complete' * written}", file=sys.stderr)
    raise SystemExit(0 if written else status or 2)


def _fail(error: Exception, arguments: list[str]) -> NoReturn:
    """Say in one line what is wrong; with ``--json`` standard output gets an object as well."""
    from nola_edge.cli.failure import Failure, wants_json
    from nola_edge.files.strict_json import dumps

    failure = Failure.of(error)
    print(f"nola-edge: {failure.line}", file=sys.stderr)
    if wants_json(arguments):
        try:
            print(dumps(failure.as_json(), indent=2), flush=True)
        except BrokenPipeError:  # at the end nobody shall try once more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    raise SystemExit(2)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each of our warnings once and as one line, without a place in the code."""
    said: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, NolaEdgeWarning):
                others(message, category, *rest, **more)
            elif str(message) not in said:
                said.add(str(message))
                say(f"warning: {message}", err=True)

        warnings.showwarning = show
        warnings.simplefilter("always", NolaEdgeWarning)
        yield


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line.

    Exit status: 0 done; 1 a negative answer (``verify`` found differences); 2 a refusal, one line
    on stderr and, with ``--json``, an object ``{"error": …}`` on stdout; a signal ends the process
    as that signal does, after cleaning up.
    """
    open_closed_streams()
    if _COMPLETE in os.environ:
        importlib.import_module("nola_edge.cli.completion_command")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without these signs still gets text
            stream.reconfigure(errors="nola_edge.in_ascii")
    stdout = replace_stdout()
    replace_stderr()
    try:
        _handle_signals()
        _run(arguments, stdout)
    except _Terminated as error:
        print("nola-edge: terminated; nothing incomplete was kept", file=sys.stderr)
        _die_of(error.args[0])
    except (KeyboardInterrupt, click.Abort):
        print("nola-edge: interrupted; nothing incomplete was kept", file=sys.stderr)
        _die_of(signal.SIGINT)


def _run(arguments: list[str] | None, stdout: Stdout | None) -> NoReturn:
    """Run a command and end with its status, having said what is wrong if anything is."""
    try:
        with _warnings_as_lines():
            status = cli.main(args=arguments, prog_name="nola-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        raise SystemExit(2) from None
    except SystemExit:
        # click turns a closed pipe into status 1, which here is a verdict. Whoever read the output
        # has left; the work is done, and that says nothing against it.
        if type(sys.stdout) is click.utils.PacifyFlushWrapper:
            _die_of(signal.SIGPIPE)
        raise
    except (
        click.ClickException, NolaEdgeError, OSError, MemoryError, TypeError, ValueError
    ) as error:  # fmt: skip
        _fail(error, sys.argv[1:] if arguments is None else arguments)
    _exit(status if isinstance(status, int) else 0, stdout)
