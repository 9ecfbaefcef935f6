"""A bounded folder of exact LoRAs, each expanded from a NOLA adapter when it is first asked for.

The folder belongs to any number of threads and processes. An entry is a folder named by a digest of
what determines its files, so a changed adapter is another entry, and nothing is ever written over.
Two kinds of lock keep order, both on folders and gone with the process that held them:

- on the cache: whoever adds or removes an entry has it alone. So an adapter is expanded once, one
  at a time, and the bound on bytes holds across processes.
- on an entry, shared: held by every process that was given it, until it ends. vLLM comes back to
  the files whenever it has put an adapter out of memory, so such an entry is never removed; when
  all are in use and a new one does not fit, the new one is refused.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.adapter import Adapter
from nola_edge.checkpoint import Checkpoint
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import ArgumentError, ChangedError, OutputError, printable
from nola_edge.export.lora import export_lora
from nola_edge.merge.plan import plan_merge
from nola_edge.vllm.entries import Entry, check_servable, is_entry_name
from nola_edge.vllm.locks import is_at, locked, try_lock
from nola_edge.vllm.log import LOGGER
from nola_edge.vllm.names import find_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.merge.plan import MergePlan

_TEMPORARY = (".nola-edge-", ".partial")


class LoraCache:
    """Exact LoRA folders of NOLA adapters, made on demand and kept within a size.

    Usable from several threads; several processes may share the folder, which must be on a disk
    that has ``flock`` (a local one).

    Parameters
    ----------
    adapters : path
        Folder whose entries are adapters: folders, or packed files. Never written to.
    directory : path
        Of the cache; made, for this user alone, if it is not there. What is in it besides entries
        is left alone.
    max_bytes : int
        Most bytes that entries take together, those in use included.
    dtype : {"F32", "F16", "BF16"}
        Of the expanded factors; anything but F32 rounds them.

    Raises
    ------
    ArgumentError
        If an argument cannot be used.
    OutputError
        If the folder cannot be made.
    """

    def __init__(
        self,
        adapters: str | Path,
        directory: str | Path,
        *,
        max_bytes: int,
        dtype: str = "F32",
    ) -> None:
        if dtype not in MERGEABLE:
            raise ArgumentError(
                f"is {printable(dtype)!r}, must be one of {', '.join(MERGEABLE)}", field="dtype"
            )
        if max_bytes < 1:
            raise ArgumentError(f"is {max_bytes}, must be at least 1", field="max_bytes")
        self.adapters = Path(adapters)
        self.directory = Path(os.path.abspath(directory))
        self.max_bytes = max_bytes
        self.dtype = dtype
        self._mutex = threading.Lock()
        self._given: dict[str, str] = {}  # adapter's name -> the entry that was given for it last
        self._locks: dict[str, int] = {}  # entry -> descriptor with this process's shared lock
        with self._as_output_error():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, name: str) -> Path | None:
        """Return the adapter of a name, or None; see :func:`~nola_edge.vllm.names.find_adapter`."""
        return find_adapter(self.adapters, name)

    def get(self, name: str, base: str | Path) -> Path | None:
        """Return the exact LoRA folder of an adapter, expanded now if it is not there yet.

        The folder stays until this process ends, or until the name gives another one because the
        adapter changed.

        Parameters
        ----------
        name : str
            Of a folder or packed file in `adapters`.
        base : path
            The checkpoint; it says how large the modules are, and is checked at every call.

        Returns
        -------
        Path or None
            None if no adapter has that name.

        Raises
        ------
        NolaEdgeError
            If the name is not a plain one, the adapter cannot be used or does not fit the base, or
            its LoRA fits neither the disk nor, with what is in use, `max_bytes`.
        """
        source = self.find(name)
        if source is None:
            return None
        adapter = Adapter.load(source)
        check_servable(adapter)
        with Checkpoint.open(base) as checkpoint:
            plan = plan_merge(checkpoint, ((adapter, 1.0),))
            _warn_of_other_names(name, plan)
            entry = Entry.of(adapter, plan, self.dtype)
        with self._as_output_error():
            if not self._use(name, entry):
                self._make(name, entry, adapter, base)
        return self.directory / entry.name

    def close(self) -> None:
        """Give back what was in use here, so that it may be removed."""
        with self._mutex:
            for fd in self._locks.values():
                os.close(fd)
            self._locks.clear()
            self._given.clear()

    def _use(self, name: str, entry: Entry) -> bool:
        """Hold an entry for a name; False if it is not there complete."""
        path = self.directory / entry.name
        with self._mutex:
            fd = self._locks.pop(entry.name, None)
            if fd is None:
                fd = try_lock(path, shared=True)
            if fd is None:
                return False
            if not (is_at(fd, path) and entry.is_complete(path)):
                os.close(fd)
                return False
            self._locks[entry.name] = fd
            _touch(path)
            before = self._given.get(name)
            self._given[name] = entry.name
            if before is not None and before not in self._given.values():
                # Requests under way may still want it: the last to be removed, therefore.
                _touch(self.directory / before)
                held = self._locks.pop(before, None)  # None: it vanished, and its lock was dropped
                if held is not None:
                    os.close(held)
        return True

    def _make(self, name: str, entry: Entry, adapter: Adapter, base: str | Path) -> None:
        if entry.nbytes > self.max_bytes:
            raise OutputError(
                f"the LoRA of {printable(name)} takes {entry.nbytes} bytes, and the cache may hold "
                f"{self.max_bytes}; allow it more",
                file=self.directory,
            )
        with locked(self.directory):
            if self._use(name, entry):  # made by another while this one waited
                return
            self._sweep()
            self._make_room(name, entry)
            path = self.directory / entry.name
            if os.path.lexists(path):  # not what belongs there
                self._remove(path)
            begin = time.perf_counter()
            export_lora(adapter, base, path, dtype=self.dtype)
            if not self._use(name, entry):
                self._remove(path)
                raise ChangedError("changed while it was read; ask again", file=base)
        seconds = time.perf_counter() - begin
        LOGGER.info("NOLA adapter %s expanded in %.2f s: %s", printable(name), seconds, path)

    def _make_room(self, name: str, entry: Entry) -> None:
        """Remove what was used longest ago until an entry fits; nothing if it cannot fit."""
        present = sorted(item for item in self._entries() if item[2].name != entry.name)
        used = sum(size for _, size, _ in present)
        free = shutil.disk_usage(self.directory).free
        with contextlib.ExitStack() as stack:
            victims = []
            for _, size, path in present:
                if used + entry.nbytes <= self.max_bytes and entry.nbytes <= free:
                    break
                fd = try_lock(path, shared=False)
                if fd is not None:
                    stack.callback(os.close, fd)
                    victims.append(path)
                    used -= size
                    free += size
            if used + entry.nbytes > self.max_bytes:
                raise OutputError(
                    f"{used} of {self.max_bytes} bytes are in use by running servers, and the LoRA "
                    f"of {printable(name)} takes {entry.nbytes}; allow the cache more",
                    file=self.directory,
                )
            if entry.nbytes > free:
                raise OutputError(
                    f"the LoRA of {printable(name)} takes {entry.nbytes} bytes, the disk has {free}"
                    " to give",
                    file=self.directory,
                )
            for path in victims:
                self._remove(path)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (last use in ns, bytes, path) of every entry, complete or not."""
        for item in os.scandir(self.directory):
            if is_entry_name(item.name) and item.is_dir(follow_symlinks=False):
                files = [file.stat(follow_symlinks=False) for file in os.scandir(item.path)]
                size = sum(status.st_size for status in files)
                yield item.stat(follow_symlinks=False).st_mtime_ns, size, Path(item.path)

    def _remove(self, path: Path) -> None:
        """Take an entry away in one step, then delete it."""
        begin, end = _TEMPORARY
        doomed = path.with_name(f"{begin}{path.name}-{secrets.token_hex(4)}{end}")
        path.rename(doomed)
        _delete(doomed)

    def _sweep(self) -> None:
        """Delete what killed processes left; whoever writes here has the cache alone."""
        begin, end = _TEMPORARY
        for item in os.scandir(self.directory):
            if item.name.startswith(begin) and item.name.endswith(end):
                fd = try_lock(Path(item.path), shared=False)
                if fd is not None:
                    _delete(Path(item.path))
                    os.close(fd)

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot be used: {reason}", file=self.directory) from error


def _touch(path: Path) -> None:
    """Note a use; in a cache that is read-only nothing is removed anyway."""
    now = time.time_ns()  # what the kernel would set has the grain of its clock tick
    with contextlib.suppress(OSError):
        os.utime(path, ns=(now, now))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _warn_of_other_names(name: str, plan: MergePlan) -> None:
    """Say where an adapter's names are not the checkpoint's, by which vLLM finds modules."""
    for tensor, terms in plan.merges.items():
        if terms[0].module + ".weight" != tensor:
            LOGGER.warning(
                "NOLA adapter %s calls %s what the base calls %s: check that vLLM applies it",
                printable(name),
                printable(terms[0].module),
                printable(tensor),
            )
            return
