"""How the demonstrations lay out what they say: 80 columns, in a terminal or not."""

from __future__ import annotations

import textwrap

from nola_edge.errors import printable

COLUMNS = 80
_LABEL_COLUMNS = 10
_LONGEST = 1000


def filled(text: str) -> str:
    """Return a paragraph, after an empty line."""
    return "\n" + textwrap.fill(text, COLUMNS)


def labelled(label: str, text: str) -> str:
    """Return a text beside its label, one line of the text below the other."""
    lines = [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(printable(part, _LONGEST), COLUMNS - _LABEL_COLUMNS)
    ]
    indent = "\n" + " " * _LABEL_COLUMNS
    return f"  {label:8}" + indent.join(lines or ["(nothing)"])


def say_nothing(_: str) -> None:
    """Say nothing, where JSON or silence is wanted."""
