"""What kind of file something is, asked before anything that reads it is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
#: Bytes at the beginning that tell what kind of file something is.
BEGIN = 64
_LFS = b"version https://git-lfs.github.com/spec/"


def is_gguf(path: str | Path) -> bool:
    """Tell whether a path is a file that begins as a GGUF file does."""
    try:
        # Non-blocking: whether it is a pipe, the readers say.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.pread(fd, len(MAGIC), 0) == MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def refuse_lfs_pointer(begin: bytes, path: object) -> None:
    """Refuse a file that stands for another one, which Git has not fetched.

    Parameters
    ----------
    begin : bytes
        The first `BEGIN` bytes of the file.
    path : path
        Named in the error.

    Raises
    ------
    FormatError
    """
    if begin.startswith(_LFS):
        raise FormatError(
            "is a Git LFS pointer, not the file itself; run git lfs pull in its repository",
            file=path,
        )
