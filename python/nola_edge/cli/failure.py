"""What a command says when it fails: one line for people and, with ``--json``, an object."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from nola_edge.errors import NolaEdgeError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT = 1000


@dataclass(frozen=True)
class Failure:
    """Why a command failed.

    Attributes
    ----------
    type : str
        The error's class in Python, or ``"UsageError"``.
    message : str
        What is wrong and what to do next, one printable line.
    file : str or None
        The file or folder it is about.
    field : str or None
        The field, tensor, argument or option.
    value : str or None
        The offending value.
    line : str
        All of it, for people.
    """

    type: str
    message: str
    file: str | None
    field: str | None
    value: str | None
    line: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an error that is told to users."""
        if isinstance(error, click.ClickException):
            return _of_usage(error)
        file, field, value = (getattr(error, name, None) for name in ("file", "field", "value"))
        message = str(error) or type(error).__name__
        line = message
        if isinstance(error, NolaEdgeError):
            message = error.message
        elif isinstance(error, OSError):
            file, message = error.filename, error.strerror or message
        return cls(type(error).__name__, *map(_text, (message, file, field, value, line)))

    def as_json(self) -> dict[str, Any]:
        """Return the object that is printed with ``--json``."""
        found = asdict(self)
        del found["line"]
        return {"error": found}


def _of_usage(error: click.ClickException) -> Failure:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    line = message if context is None else f"{message} ({_advice(error, context)})"
    field = getattr(error, "option_name", None) or _parameter(error)
    return Failure("UsageError", printable(message, _LIMIT), None, field, None, _text(line) or "")


def _parameter(error: click.ClickException) -> str | None:
    parameter = getattr(error, "param", None)
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return None if parameter is None else str(parameter.human_readable_name)


def _advice(error: click.ClickException, context: click.Context) -> str:
    """Say how the command is called, where that is what was wrong, and where there is more."""
    more = f"see {context.command_path} --help"
    if not isinstance(error, click.NoSuchOption | click.MissingParameter):
        return more
    usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
    return f"usage: {usage}; {more}"


def _text(value: object) -> Any:
    return None if value is None else printable(value, _LIMIT)


def wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether ``--json`` is among the options of a command line, which may be wrong."""
    options = list(arguments)
    options = options[: options.index("--")] if "--" in options else options
    return any(option.split("=")[0] == "--json" for option in options)
