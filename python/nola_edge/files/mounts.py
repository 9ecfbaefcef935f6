"""What file system a path lies on (Linux; elsewhere nothing is known)."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
#: These make up inodes as they go: a file's may change once the kernel has forgotten it.
_MADE_UP_INODES = ("fuse", "vfat", "msdos", "exfat", "cifs", "smb", "9p")


#: These show the kernel's own data as files, and hold none of anybody else.
_OF_THE_KERNEL = (
    "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "pstore", "bpf",
    "configfs", "devpts", "efivarfs", "binfmt_misc", "fusectl", "nsfs",
)  # fmt: skip


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


def shows_the_kernel(path: Path) -> str:
    """Return the type of a file system such as /proc, in which nothing can be written, or ""."""
    found = file_system(path)
    return found if found in _OF_THE_KERNEL else ""


def keeps_inodes(path: Path) -> bool:
    """Tell whether a file keeps its inode as long as it is there."""
    return not file_system(path).startswith(_MADE_UP_INODES)
