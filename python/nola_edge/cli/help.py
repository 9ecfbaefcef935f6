"""How help looks: nothing is broken inside a command or an option, at 60 columns either."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from nola_edge.cli.layout import whole, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXAMPLE = "Example: "
_VERBATIM = "\b"
#: What of a sentence is typed, and so is not broken.
_COMMAND = re.compile(r'"[^"]*"|-o \S+')
_WHOLE = 1000


class HelpFormatter(click.HelpFormatter):
    """Wraps between words only; goes on with a command as a shell does."""

    def write_text(self, text: str) -> None:
        """Write paragraphs: examples, what is marked not to be wrapped, and the rest wrapped."""
        indent = " " * self.current_indent
        paragraphs = text.split("\n\n")
        for number, paragraph in enumerate(paragraphs):
            together = paragraph.startswith(_EXAMPLE) and paragraphs[number - 1].startswith(
                _EXAMPLE
            )
            self.write("\n" * (number > 0 and not together))
            for line in _laid_out(paragraph, self.width - self.current_indent):
                self.write(f"{indent}{line}\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write terms and what they mean; a long term has a line of its own."""
        rows = list(rows)
        longest = min(col_max, self.width // 3)
        column = max((len(term) for term, _ in rows if len(term) <= longest), default=longest)
        indent = " " * self.current_indent
        column += col_spacing + self.current_indent
        for term, text in rows:
            lines = wrap(text.replace("\n", " "), self.width - column)
            head = indent + term
            if len(head) + col_spacing > column:
                self.write(f"{head}\n")
                head = ""
            self.write(f"{head:{column}}{lines[0]}\n")
            self.write("".join(f"{'':{column}}{line}\n" for line in lines[1:]))


def _laid_out(paragraph: str, columns: int) -> list[str]:
    first, *rest = paragraph.split("\n")
    if first == _VERBATIM:
        return [shown for line in rest for shown in _example(line, columns)]
    text = " ".join([first, *map(str.strip, rest)])
    if text.startswith(_EXAMPLE):
        return _example(text, columns)
    return wrap(_COMMAND.sub(lambda found: whole(found[0]), text), columns)


def _example(line: str, columns: int) -> list[str]:
    """Break a command as a shell lets one: before its options, or before any word if need be."""
    if len(line) <= columns or not line.startswith(_EXAMPLE):
        return [line]
    parts = [
        part
        for text in re.split(" (?=-)", line)
        for part in ([text] if len(text) <= columns - 2 else re.split("(?<!:) ", text))
    ]
    lines = [parts[0]]
    for number, part in enumerate(parts[1:], 2):
        more = " \\" * (number < len(parts))
        if len(f"{lines[-1]} {part}{more}") > columns:
            lines[-1] += " \\"
            lines.append(f"{'':{len(_EXAMPLE) + 2}}{part}")
        else:
            lines[-1] += f" {part}"
    return lines


class HelpContext(click.Context):
    """A context whose help is written by our formatter."""

    formatter_class = HelpFormatter


class Group(click.Group):
    """Commands with our help, and a suggestion for an unknown name."""

    context_class = HelpContext

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, given our help."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.context_class = HelpContext
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(args[0], names, 1)
            ctx.fail(
                f"No such command {args[0]!r}." + "".join(f" Did you mean {n!r}?" for n in close)
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, uncut."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, found.get_short_help_str(_WHOLE)) for name, found in commands if found]
            )
