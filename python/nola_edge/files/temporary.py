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
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.files.renaming import rename_new

if TYPE_CHECKING:
    from collections.abc import Callable

#: Within a temporary: the new output, until it is in place …
NEW = "new"
#: … the output that it replaces, where the two cannot be exchanged in one step …
REPLACED = "replaced"
#: … and a note of the new one's inode, made before they are exchanged.
EXCHANGED = "exchanged"

#: Nobody writes for so long without a single change to the files; in seconds.
_LONG_AGE = 7 * 24 * 3600
#: Bytes of a target's name that a temporary's name repeats; file systems allow 255 in all.
_LONGEST_NAME = 140
#: In a process's flags: it is ending (Linux's ``PF_EXITING``).
_EXITING = 0x4
#: A machine that has no id: every one that has none is called so.
_NOBODY = "0" * 8
_OWNER = (
    r"(?P<host>[0-9a-f]{8})\.(?P<boot>[0-9a-f]{8})\.(?P<namespace>[0-9]+)"
    r"\.(?P<process>[0-9]+)\.(?P<started>[0-9]+)-[0-9a-f]{8}\.partial"
)
#: A temporary of any target; the groups are the owner's.
_TEMPORARY = rf"(?s:\.nola-edge-.+-{_OWNER})"


def temporary_path(target: Path) -> Path:
    """Return a new name beside a target, which says that this process is its owner."""
    owner = _myself()
    words = (owner.host, owner.boot, owner.namespace, owner.process, owner.started)
    name = ".".join(map(str, words)) + f"-{os.urandom(4).hex()}.partial"
    return target.with_name(_prefix(target) + name)


def sweep(target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Remove the temporaries of a target whose owners are dead; see :func:`put_back`.

    Parameters
    ----------
    target : Path
        Temporaries of other targets are left alone, whatever their names begin with.
    may_replace : callable
        Tells whether the target may be lost, had it come to hold what stands at a path.
    """
    prefix = _prefix(target)
    for entry in os.scandir(target.parent):
        if not entry.name.startswith(prefix):
            continue
        owner = re.fullmatch(_OWNER, entry.name[len(prefix) :])
        if owner is None or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):
            if _is_dead(_Owner.named(owner), Path(entry.path)):
                put_back(Path(entry.path), target, may_replace)
                shutil.rmtree(entry.path, ignore_errors=True)


def sweep_folder(folder: Path) -> None:
    """Remove the temporaries in a folder, whatever their targets, whose owners are dead.

    One that may hold a former output is left to :func:`sweep`, which knows where that belongs.
    """
    for entry in os.scandir(folder):
        owner = re.fullmatch(_TEMPORARY, entry.name)
        if owner is None or not entry.is_dir(follow_symlinks=False):
            continue
        path = Path(entry.path)
        with contextlib.suppress(OSError):
            if _is_dead(_Owner.named(owner), path) and not _holds_another(path):
                shutil.rmtree(path, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Tell whether a temporary is called so, whatever its target and whoever its owner."""
    return re.fullmatch(_TEMPORARY, name) is not None


def put_back(temporary: Path, target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Take out of a temporary what stood at the target and is not to be lost.

    What was taken away there, for a new output that never came, is put back; where something else
    has come instead, or where what came out of an exchange may not be lost, it is kept beside it.

    Raises
    ------
    OSError
        If that cannot be done; the temporary is then as it was.
    """
    new, replaced = temporary / NEW, temporary / REPLACED
    in_vain = os.path.lexists(replaced) and not _is_in_place(new, target)
    if in_vain and not rename_new(replaced, target):
        keep(replaced, target)
    if _is_exchanged(temporary) and not may_replace(new):
        keep(new, target)


def _holds_another(temporary: Path) -> bool:
    return os.path.lexists(temporary / REPLACED) or _is_exchanged(temporary)


def _is_in_place(new: Path, target: Path) -> bool:
    """Tell whether the new output has left its temporary, or stands at the target as well."""
    try:
        return os.path.samestat(os.lstat(new), os.lstat(target))
    except OSError:
        return not os.path.lexists(new)


def keep(path: Path, target: Path) -> Path:
    """Give what stood at a target a name beside it; return that."""
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    kept = target.with_name(f"{name}.replaced-{os.urandom(4).hex()}")
    os.rename(path, kept)
    return kept


def note_exchange(temporary: Path) -> None:
    """Note which one is the new output, before it is exchanged with the one that it replaces."""
    (temporary / EXCHANGED).write_text(str(os.lstat(temporary / NEW).st_ino))


def _is_exchanged(temporary: Path) -> bool:
    """Tell whether what is found for the new output is the one that it replaced."""
    noted, new = _text(str(temporary / EXCHANGED)), temporary / NEW
    return noted != "" and os.path.lexists(new) and str(os.lstat(new).st_ino) != noted


class _Owner(NamedTuple):
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
    process, machine = os.getpid(), _text("/etc/machine-id")
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return _Owner(
        host=_digest(os.uname().nodename + machine) if machine else _NOBODY,
        boot=_digest(_text("/proc/sys/kernel/random/boot_id")),
        namespace=namespace,
        process=process,
        started=_started(process) or 0,
    )


def _is_dead(owner: _Owner, temporary: Path) -> bool:
    """Tell whether an owner is provably dead; one that cannot be asked after is taken for alive."""
    me = _myself()
    if (owner.host, owner.boot, owner.namespace) == (me.host, me.boot, me.namespace):
        return not _runs(owner)
    changed = _last_change(temporary)
    if owner.host == me.host != _NOBODY and owner.boot != me.boot and changed < _boot_time():
        return True  # the machine has been restarted since
    return changed < time.time() - _LONG_AGE


def _runs(owner: _Owner) -> bool:
    """Tell whether a process of this machine is there, and is not another of the same number."""
    # Before it is looked for: when one that is gone was started is as unknown as where /proc is
    # not to be read.
    started = _started(owner.process)
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return owner.started == 0 or started in (None, owner.started)


def _started(process: int) -> int | None:
    """Return when a process was started, in ticks; None if unknown, -1 if it is a zombie or ending.

    One that was killed may take a while to give its memory back. It does nothing more, and
    its locks may be free already.
    """
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    ending = fields[0] in "ZX" or int(fields[6]) & _EXITING
    return -1 if ending else int(fields[19])


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
