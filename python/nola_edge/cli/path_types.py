"""Types of parameters that are paths, for the shell to complete."""

from __future__ import annotations

from typing import Any

import click


class PathType(click.Path):
    """Text that names a file or a folder, and is not looked at.

    Commands look, and say in their own words what is wrong; an adapter may also be a Hub id, or a
    path with a weight.

    Parameters
    ----------
    name : str
        What help calls it, in lower case.
    file_okay : bool
        Whether the shell offers files too, or folders alone.
    """

    def __init__(self, name: str, *, file_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay)
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text as it is."""
        return value


PATH = PathType("path")
FILE = PathType("file")
FOLDER = PathType("folder", file_okay=False)
