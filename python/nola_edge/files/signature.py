"""What kind of file something is, asked before anything that reads it is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"


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
