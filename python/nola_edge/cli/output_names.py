"""Names of outputs that say something else than what is written are refused."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from nola_edge.errors import OutputError, printable
from nola_edge.files.obstacles import special_file

_FILES = (".safetensors", ".gguf", ".nola", ".bin", ".pt", ".pth", ".json")


def check_folder_name(
    output: str, what: str = "the output is a folder", option: str = "-o"
) -> None:
    """Refuse the name of a file for an output that is a folder.

    Raises
    ------
    OutputError
    """
    _check_written_at_all(output, option)
    stem, suffix = os.path.splitext(output)
    if suffix.lower() in _FILES and not os.path.isdir(output):
        raise OutputError(f"{what}; write {option} {_shown(stem)}", file=output)


def check_file_name(
    output: str, suffix: str, what: str = "the output is a file", name: str = ""
) -> None:
    """Refuse a name without the suffix for an output that is a file.

    Parameters
    ----------
    output : str
    suffix : str
        With its dot.
    what : str
        Why it is a file.
    name : str
        What to call it in a folder that is given instead.

    Raises
    ------
    OutputError
    """
    _check_written_at_all(output)
    if os.path.isdir(output) or output.endswith("/"):
        inside = os.path.join(output, Path(name or "output").stem + suffix)
        raise OutputError(f"{what}; write -o {_shown(inside)}", file=output)
    stem, found = os.path.splitext(output)
    if found != suffix:
        stem = stem if found.lower() in _FILES or found.lower() == suffix else output
        raise OutputError(f"{what}; write -o {_shown(stem + suffix)}", file=output)


def _check_written_at_all(output: str, option: str = "-o") -> None:
    if output == "-":
        raise OutputError(
            "results cannot be written to standard output, because an output appears only when it "
            f"is complete; write {option} NAME",
            file=output,
        )
    special = special_file(Path(output))
    if special is not None:
        raise OutputError(f"{special}, and never replaced; choose another name", file=output)


def _shown(path: str) -> str:
    return printable(shlex.quote(path), 240)
