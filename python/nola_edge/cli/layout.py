"""Text that fits the terminal: wrapped between words, in signs that it has."""

from __future__ import annotations

import codecs
import re
import sys
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lines longer than this are hard to read, however wide the terminal is.
MAX_WIDTH = 100
#: A space at which no line ends.
GLUE = "\xa0"

_IN_ASCII = {"…": "...", "×": "x", "–": "-", "−": "-", "“": '"', "”": '"', "’": "'", "≤": "<="}


def width() -> int:
    """Return how many columns a line may have: those of the terminal, or 80 without one."""
    import shutil

    return min(shutil.get_terminal_size().columns, MAX_WIDTH)


def whole(text: str) -> str:
    """Return text that :func:`wrap` does not break, such as a command to be copied."""
    return text.replace(" ", GLUE)


def wrap(text: str, columns: int) -> list[str]:
    """Break text between words, and a word longer than a line after a slash, dot or underscore.

    No line ends at a hyphen, which may stand in a command, nor at :data:`GLUE`, which becomes a
    space.
    """
    words = " ".join(_divided(text, columns))
    lines = textwrap.wrap(words, columns, break_long_words=False, break_on_hyphens=False)
    return [line.replace(GLUE, " ") for line in lines] or [""]


def _divided(text: str, columns: int) -> Iterator[str]:
    for word in text.split(" "):
        part = ""
        for piece in _pieces(word, columns):
            if part and len(part) + len(piece) > columns:
                yield part
                part = ""
            part += piece
        yield part


def _pieces(word: str, columns: int) -> list[str]:
    return [word] if len(word) <= columns or GLUE in word else re.split(r"(?<=[/._])", word)


def say(text: str, *, err: bool = False) -> None:
    """Print a line, wrapped where it meets a terminal; what follows is indented under it.

    Programs that read it get one line.
    """
    if not (sys.stderr if err else sys.stdout).isatty():
        click.echo(text.replace(GLUE, " "), err=err)
        return
    indent = " " * (len(text) - len(text.lstrip(" ")) + 2)
    first, *rest = wrap(text.strip(" "), width() - len(indent))
    click.echo("\n".join([indent[2:] + first, *(indent + line for line in rest)]), err=err)


def has(signs: str) -> bool:
    """Tell whether standard output's encoding has these signs."""
    try:
        signs.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Write signs that an encoding lacks in others; an error handler for :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(sign, "?") for sign in missing), error.end


codecs.register_error("nola_edge.in_ascii", in_ascii)
