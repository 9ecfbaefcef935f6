"""A temporary folder with room for what is to be put there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def scratch_folder(nbytes: int) -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end.

    Parameters
    ----------
    nbytes : int
        What will be put there, about.

    Raises
    ------
    OutputError
        If its disk has no room.
    """
    with tempfile.TemporaryDirectory(prefix="nola-edge-demo-") as made:
        folder = Path(made)
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise OutputError(
                f"the demonstration needs {nbytes} bytes there, but the disk has only {free} "
                "free; set TMPDIR to a folder on another disk",
                file=folder.parent,
            )
        yield folder
