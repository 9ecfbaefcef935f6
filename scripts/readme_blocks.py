"""Run every block of the README in order, in one folder, and compare what it prints.

    python scripts/readme_blocks.py            # check
    python scripts/readme_blocks.py --write    # put what was printed into the README
    python scripts/readme_blocks.py docs/edge.md

A `console` block holds commands after `$ ` and what each prints; `sh` and `python` blocks have to
succeed. Times and rates may differ; a line `…` stands for any lines. Where the line below a block
says "It prints `…`", its last line is that, with numbers to within a tenth. A block below an HTML
comment that begins with "test command" or "not run" is left out: the first is what `.ci/run` runs
on its own, the second gives a reason. Needs what `pip install '.[peft,test]'` installs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
LEFT_OUT = ("test command", "not run")
LANGUAGES = ("console", "sh", "python")
ANY_LINES = "…"
#: What may differ from run to run.
MEASURED = re.compile(r"[\d.,]+ (?:[kMGT]?B/s|ms|s)\b")


@dataclass
class Block:
    """A fenced block.

    Attributes
    ----------
    language : str
    line : int
        Of its first line in the file, counted from 0.
    lines : list of str
    comment : str
        The HTML comment just above it.
    below : str
        The line below it.
    """

    language: str
    line: int
    lines: list[str]
    comment: str
    below: str = ""


@dataclass
class Command:
    """A command of a console block, and what it is to print."""

    text: str
    printed: list[str]


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text."""
    found: list[Block] = []
    inside, comment, below = False, "", True
    for number, line in enumerate(text.splitlines()):
        if inside and line == "```":
            inside, comment, below = False, "", False
        elif inside:
            found[-1].lines.append(line)
        elif line.lstrip().startswith("```"):
            if line[3:] not in LANGUAGES:
                raise SystemExit(f"line {number + 1}: {line!r} is none of {', '.join(LANGUAGES)}")
            found.append(Block(line[3:], number + 1, [], comment))
            inside = True
        elif line.strip():
            remark = re.fullmatch(r"<!-- (.*) -->", line)
            comment = remark[1] if remark else ""
            if not below:
                found[-1].below, below = line, True
    if inside:
        raise SystemExit(f"line {found[-1].line}: the block does not end")
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    found: list[Command] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        elif found:
            found[-1].printed.append(line)
    return [Command(c.text, _without_blank_end(c.printed)) for c in found]


def _without_blank_end(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


class Shell:
    """Runs commands one after the other; the current folder of one is that of the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1"}
        programs = Path(sys.executable).parent
        self._environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def run(self, command: str) -> tuple[int, list[str]]:
        """Return the status and the printed lines of a command."""
        with tempfile.NamedTemporaryFile("r") as where:
            # Any command that fails is the block's failure, wherever it stands.
            script = f"trap 'pwd >{where.name}' EXIT\n{command}"
            status, printed = self._start(["bash", "-euo", "pipefail", "-c", script])
            self.folder = Path(where.read().strip() or self.folder)
        return status, printed

    def run_python(self, program: str) -> tuple[int, list[str]]:
        """Return the status and the printed lines of a Python program."""
        return self._start([sys.executable, "-c", program])

    def _start(self, command: list[str]) -> tuple[int, list[str]]:
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, _without_blank_end(done.stdout.splitlines())


def is_same(wanted: list[str], printed: list[str]) -> bool:
    """Compare lines, apart from times and rates; ``…`` stands for any lines."""
    pattern = "\n".join(
        ".*" if line.strip() == ANY_LINES else re.escape(MEASURED.sub("#", line)) for line in wanted
    )
    text = "\n".join(MEASURED.sub("#", line) for line in printed)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def check(text: str, folder: Path) -> tuple[list[str], str]:
    """Run all blocks of a README in a folder.

    Returns
    -------
    complaints : list of str
    mended : str
        The text with what was printed in the place of what differs.
    """
    shell = Shell(folder)
    complaints: list[str] = []
    found = [block for block in blocks(text) if not block.comment.startswith(LEFT_OUT)]
    printed = [run_block(block, shell, complaints) for block in found]
    lines = text.splitlines()
    for block, now in zip(reversed(found), reversed(printed), strict=True):
        lines[block.line : block.line + len(block.lines)] = now
    return complaints, "\n".join(lines) + "\n"


def run_block(block: Block, shell: Shell, complaints: list[str]) -> list[str]:
    """Run a block and return its lines as they should be; add to the complaints."""
    print(f"line {block.line + 1}: {block.language}", flush=True)
    if block.language == "console":
        return list(_run_console(block, shell, complaints))
    program = "\n".join(block.lines)
    run = shell.run_python if block.language == "python" else shell.run
    status, printed = run(program)
    promised = re.match("It prints `([^`]*)`", block.below)
    if status:
        complaints.append(_failed(block, program, status, printed))
    elif promised and not _is_about(promised[1], printed[-1] if printed else ""):
        complaints.append(f"line {block.line + 1}: prints {printed[-1:]}, not {promised[1]!r}")
    return block.lines


def _is_about(wanted: str, printed: str) -> bool:
    """Compare two lines, numbers to within a tenth."""
    number = re.compile(r"\d+(?:\.\d+)?")
    if number.sub("#", wanted) != number.sub("#", printed):
        return False
    pairs = zip(number.findall(wanted), number.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= 0.1 * float(a) for a, b in pairs)


def _run_console(block: Block, shell: Shell, complaints: list[str]) -> Iterator[str]:
    for command in commands(block):
        yield f"$ {command.text}"
        status, printed = shell.run(command.text)
        if status:
            complaints.append(_failed(block, command.text, status, printed))
        if is_same(command.printed, printed):
            yield from command.printed
            continue
        yield from printed
        difference = difflib.unified_diff(command.printed, printed, "README", "now", lineterm="")
        complaints.append("\n".join([f"line {block.line + 1}: $ {command.text}", *difference]))


def _failed(block: Block, command: str, status: int, printed: list[str]) -> str:
    return "\n".join([f"line {block.line + 1}: status {status} of", command, *printed[-20:]])


def main() -> None:
    """Check the README, or mend it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("readme", nargs="?", default=README, type=Path)
    parser.add_argument("--write", action="store_true", help="put what was printed into the file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        complaints, mended = check(given.readme.read_text(encoding="utf-8"), Path(folder))
    print("\n\n".join(complaints) or "every block runs and prints what it says")
    if given.write:
        given.readme.write_text(mended, encoding="utf-8")
    raise SystemExit(1 if complaints else 0)


if __name__ == "__main__":
    main()
