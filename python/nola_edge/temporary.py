"""Temporary folders that stand beside an output while it is written, and what is left of dead ones.

A temporary's name says who made it: the machine, its boot, the namespace of processes, the process
and when that started. So it comes into being together with its owner's name, and nobody needs a
lock to tell whether the owner lives: locks are local to each mount on many shared file systems.
A temporary is removed only where its owner is provably dead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

#: Within a temporary: the output that is replaced, where it cannot be exchanged in one step.
REPLACED = "replaced"

#: Nobody writes for so long without a single change to the files; in seconds.
_LONG_AGE = 7 * 24 * 3600
#: Bytes of a target's name that a temporary's name repeats; file systems allow 255 in all.
_LONGEST_NAME = 140
_OWNER = re.compile(
    r"(?P<host>[0-9a-f]{8})\.(?P<boot>[0-9a-f]{8})\.(?P<namespace>[0-9]+)"
    r"\.(?P<process>[0-9]+)\.(?P<started>[0-9]+)-[0-9a-f]{8}\.partial"
)


def temporary_path(target: Path) -> Path:
    """Return a new name beside a target, which says that this process is its owner."""
    owner = _myself()
    words = (owner.host, owner.boot, owner.namespace, owner.process, owner.started)
    name = ".".join(map(str, words)) + f"-{secrets.token_hex(4)}.partial"
    return target.with_name(_prefix(target) + name)


def sweep(target: Path) -> None:
    """Remove the temporaries of a target whose owners are dead.

    A former output that is found in one, while there is nothing at the target, is put back: its
    owner died between taking it away and putting the new one there.

    Parameters
    ----------
    target : Path
        Temporaries of other targets are left alone, whatever their names begin with.
    """
    prefix = _prefix(target)
    for entry in os.scandir(target.parent):
        owner = _OWNER.fullmatch(entry.name, len(prefix)) if entry.name.startswith(prefix) else None
        if owner is None or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):
            if _is_dead(_Owner.named(owner), Path(entry.path)):
                remove(Path(entry.path), target)


def remove(temporary: Path, target: Path) -> None:
    """Remove a temporary; an output that it was replacing is put back first if need be."""
    replaced = temporary / REPLACED
    if os.path.lexists(replaced) and not os.path.lexists(target):
        os.rename(replaced, target)
    shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Owner:
    """Who made a temporary.

    Attributes
    ----------
    host : str
        Digest of the machine's name and id.
    boot : str
        Digest of the id that the kernel draws when it starts.
    namespace : int
        Of process numbers: containers of one machine count from 1 each.
    process : int
    started : int
        When the process was started, in the kernel's ticks; 0 where that cannot be had.
    """

    host: str
    boot: str
    namespace: int
    process: int
    started: int

    @staticmethod
    def named(name: re.Match[str]) -> _Owner:
        host, boot, *numbers = name.groups()
        return _Owner(host, boot, *map(int, numbers))


def _myself() -> _Owner:
    process = os.getpid()
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return _Owner(
        host=_digest(os.uname().nodename + _text("/etc/machine-id")),
        boot=_digest(_text("/proc/sys/kernel/random/boot_id")),
        namespace=namespace,
        process=process,
        started=_started(process) or 0,
    )


def _is_dead(owner: _Owner, temporary: Path) -> bool:
    """Tell whether an owner is provably dead; one that cannot be asked after is taken for alive."""
    me = _myself()
    here = (me.host, me.boot, me.namespace)
    if (owner.host, owner.boot, owner.namespace) == here and not _runs(owner):
        return True
    changed = _last_change(temporary)
    if owner.host == me.host and owner.boot != me.boot and changed < _boot_time():
        return True  # the machine has been started anew since
    return changed < time.time() - _LONG_AGE


def _runs(owner: _Owner) -> bool:
    """Tell whether a process of this machine is there, and is not another of the same number."""
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return _started(owner.process) in (None, owner.started)


def _started(process: int) -> int | None:
    """Return when a process was started, in ticks; None if unknown, -1 if it is a zombie."""
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def _boot_time() -> float:
    """Return when this machine was started, in seconds since 1970; 0 if unknown."""
    found = re.search(r"^btime ([0-9]+)$", _text("/proc/stat"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _last_change(folder: Path) -> float:
    """Return when anything below a folder changed last, in seconds since 1970."""
    times = [os.lstat(folder).st_mtime]
    for place, folders, files in os.walk(folder):
        times += [os.lstat(Path(place, name)).st_mtime for name in [*folders, *files]]
    return max(times)


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".nola-edge-{name}-"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
