"""What a command says of its result: a few lines, JSON for scripts, or nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nola_edge.cli import output as ui
from nola_edge.cli.layout import say
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nola_edge.adapters import ExpectedResult

    Command = TypeVar("Command", bound=Callable[..., Any])

quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="Print no progress bar and no summary."
)


def summary_options(command: Command) -> Command:
    """Add ``--json`` and ``--quiet``, which go to :func:`show`."""
    return ui.json_option(quiet_option(command))


def show(found: Any, *lines: str, as_json: bool, quiet: bool) -> None:
    """Print what was done: as JSON if that is wanted, else as text unless nothing is."""
    if as_json:
        ui.print_json(found)
    elif not quiet:
        for line in lines:
            say(line)


def left_out(expected: Sequence[ExpectedResult], why: str) -> list[str]:
    """Say in a line that results which an adapter expects are not in what was made of it."""
    names = printable(", ".join(result.name for result in expected), 240)
    return [f"  left out: what the adapter expects of {names}; {why}"] if expected else []


def as_found(report: Any) -> dict[str, Any]:
    """Return a report for JSON, where every size is called ``bytes``."""
    found: dict[str, Any] = asdict(report)
    return {"bytes" if name == "nbytes" else name: value for name, value in found.items()}


def bytes_at(path: str | Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    place = Path(path)
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
