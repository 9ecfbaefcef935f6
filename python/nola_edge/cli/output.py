"""What commands share: options, sizes that people can read, the progress bar, JSON."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_edge.errors import ArgumentError, OutputError
from nola_edge.files.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

#: As the library allows; the processors bound what is used.
MAX_THREADS = (1 << 16) - 1

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Threads to use; the number does not change any bits.  [default: all processors]",
)
check_base_option = click.option(
    "--check-base/--no-check-base",
    default=True,
    show_default=True,
    help="Refuse a base that the adapter was not trained on; a GGUF file cannot be checked.",
)
check_result_option = click.option(
    "--check-result/--no-check-result",
    default=True,
    show_default=True,
    help="Refuse another result than a packed ADAPTER records for BASE (see nola-edge pack "
    "--expect).",
)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def parse_adapter(text: str) -> tuple[str, float]:
    """Split ``PATH=WEIGHT``; an existing path wins over the weight's reading.

    Raises
    ------
    ArgumentError
        If the weight is not a decimal number.
    """
    path, separator, weight = text.rpartition("=")
    if not separator or os.path.exists(text):
        return text, 1.0
    if not _NUMBER.fullmatch(weight):
        raise ArgumentError(f"{weight!r} is not a weight such as 0.5", field=text)
    return path, float(weight)


def check_apart(adapter: Path | None, output: str) -> None:
    """Refuse an output that would replace the adapter it is made from.

    Raises
    ------
    OutputError
    """
    if adapter is not None and Path(output).resolve() == adapter.resolve():
        raise OutputError("is an input; inputs are never changed", file=output)


def human_bytes(count: float) -> str:
    """Format bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(dumps(value, indent=2, default=str))


class Progress:
    """A progress bar on stderr with a rate; silent if stderr is not a terminal.

    A context manager; the callable it gives is told what was done since the last call, and may be
    called from any thread.
    """

    def __init__(self, total: int, label: str, quiet: bool = False, unit: str = "B") -> None:
        self._total = total
        self._label = label
        self._unit = unit
        self._quiet = quiet or not sys.stderr.isatty()
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Callable[[int], None]:
        if self._quiet:
            return lambda _: None
        from tqdm import tqdm

        self._bar = tqdm(
            total=self._total, desc=self._label, unit=self._unit, unit_scale=True, leave=False
        )
        return self._advance

    def _advance(self, count: int) -> None:
        with self._lock:
            self._bar.update(count)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
