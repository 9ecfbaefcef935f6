"""What file system a path lies on (Linux; elsewhere nothing is known)."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
#: These make up inodes as they go: a file's may change once the kernel has forgotten it.
_MADE_UP_INODES = ("fuse", "vfat", "msdos", "exfat", "cifs", "smb", "9p")


def file_system(path: Path) -> str:
    """Return the type of the file system that a path lies on, or nothing."""
    device = os.lstat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for fields in map(str.split, lines):
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""


def keeps_inodes(path: Path) -> bool:
    """Tell whether a file keeps its inode as long as it is there."""
    return not file_system(path).startswith(_MADE_UP_INODES)
