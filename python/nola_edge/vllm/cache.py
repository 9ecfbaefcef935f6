"""A bounded folder of exact LoRAs, each expanded from a NOLA adapter when it is first asked for.

The folder belongs to any number of threads and processes. An entry is a folder named by a digest of
what determines its files, so a changed adapter is another entry, and nothing is ever written over.
Two kinds of lock keep order, both on folders and gone with the process that held them:

- on the cache: whoever adds or removes an entry has it alone. So an adapter is expanded once, one
  at a time, and the bound on bytes holds across processes.
- on an entry, shared: held by every process that was given it, until it ends. vLLM comes back to
  the files whenever it has put an adapter out of memory, for requests that name it and for those
  that still wait for one that changed since; an engine that does not find them ends, and the server
  with it. So such an entry is never removed, nor absent for a moment; when all are in use and a new
  one does not fit, the new one is refused.

In vLLM the one API server's process asks and has the locks, and the engine's processes, started
before, read. When it ends they have nobody left to answer, and end too; so its locks protect the
files for as long as anybody needs them. What is forked from it has its locks too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge import arguments
from nola_edge.adapters import Adapter
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import ArgumentError, ChangedError, OutputError, printable
from nola_edge.export.lora import export_lora
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.temporary import sweep_folder, temporary_path
from nola_edge.merge.plan import plan_merge
from nola_edge.type_names import check_type
from nola_edge.vllm.entries import Entry, check_servable, is_entry_name
from nola_edge.vllm.locks import is_at, locked, try_lock
from nola_edge.vllm.log import LOGGER
from nola_edge.vllm.names import find_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.merge.plan import MergePlan


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
        if max_bytes < 1:
            raise ArgumentError(f"is {max_bytes}, must be at least 1", field="max_bytes")
        self.adapters = arguments.path("adapters", adapters)
        self.directory = Path(os.path.abspath(arguments.path("directory", directory)))
        self.max_bytes = max_bytes
        self.dtype = check_type(dtype, MERGEABLE)
        self._mutex = threading.Lock()
        self._locks: dict[str, int] = {}  # entry -> descriptor with this process's shared lock
        with self._as_output_error():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, name: str) -> Path | None:
        """Return the adapter of a name, or None; see :func:`~nola_edge.vllm.names.find_adapter`."""
        return find_adapter(self.adapters, name)

    def get(self, name: str, base: str | Path) -> Path | None:
        """Return the exact LoRA folder of an adapter, expanded now if it is not there yet.

        The folder stays until this process ends, even when the name gives another one since,
        because the adapter changed.

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
        base = arguments.path("base", base)
        source = self.find(name)
        if source is None:
            return None
        adapter = Adapter.load(source)
        check_servable(adapter)
        with Checkpoint.open(base) as checkpoint:
            plan = plan_merge(checkpoint, ((adapter, 1.0),), override="")
            _warn_of_other_names(name, plan)
            entry = Entry.of(adapter, plan, self.dtype)
        with self._as_output_error():
            if not self._use(entry):
                self._make(name, entry, adapter, base)
        return self.directory / entry.name

    def close(self) -> None:
        """Give back what was in use here, so that it may be removed."""
        with self._mutex:
            for fd in self._locks.values():
                os.close(fd)
            self._locks.clear()

    def _use(self, entry: Entry) -> bool:
        """Hold an entry until this process ends; False if it is not there complete."""
        path = self.directory / entry.name
        with self._mutex:
            held = self._locks.get(entry.name)
            fd = held if held is not None and is_at(held, path) else try_lock(path, shared=True)
            if fd is None:
                return False
            if not entry.is_complete(path):
                if fd != held:
                    os.close(fd)
                return False
            if fd != held:
                self._locks[entry.name] = fd
                if held is not None:  # of a folder that is no longer there
                    os.close(held)
            _touch(path)
        return True

    def _make(self, name: str, entry: Entry, adapter: Adapter, base: str | Path) -> None:
        if entry.nbytes > self.max_bytes:
            raise OutputError(
                f"the LoRA of {printable(name)} takes {entry.nbytes} bytes, but the cache may hold "
                f"only {self.max_bytes}; raise the limit",
                file=self.directory,
            )
        with locked(self.directory):
            if self._use(entry):  # made by another while this one waited
                return
            sweep_folder(self.directory)
            self._make_room(name, entry)
            begin = time.perf_counter()
            fresh = temporary_path(self.directory / entry.name)
            try:
                export_lora(adapter, base, fresh, dtype=self.dtype)
                if not entry.is_complete(fresh):
                    raise ChangedError("changed while it was read; ask again", file=base)
                self._put(fresh, self.directory / entry.name)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            if not self._use(entry):
                raise OutputError("changed while it was written to; ask again", file=self.directory)
        seconds = time.perf_counter() - begin
        path = self.directory / entry.name
        LOGGER.info("NOLA adapter %s expanded in %.2f s: %s", printable(name), seconds, path)

    def _put(self, fresh: Path, path: Path) -> None:
        """Move a complete folder to its place, where something may be that is not complete.

        Servers may have been given what is there: a folder stays, and each of its files is
        replaced in one step, so that none of them ever finds one absent that was not before.
        """
        if path.is_dir() and not path.is_symlink():
            for file in sorted(fresh.iterdir()):
                file.replace(path / file.name)
            return
        path.unlink(missing_ok=True)
        fresh.rename(path)

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
                    f"{used} of {self.max_bytes} bytes are in use by running servers, which keep "
                    f"everything they were ever given, and the LoRA of {printable(name)} takes "
                    f"{entry.nbytes}; raise the limit of the cache, or restart them",
                    file=self.directory,
                )
            if entry.nbytes > free:
                raise OutputError(
                    f"the LoRA of {printable(name)} takes {entry.nbytes} bytes, but the disk has "
                    f"only {free} available",
                    file=self.directory,
                )
            for path in victims:
                _remove(path)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (last use in ns, bytes, path) of every entry, complete or not."""
        for item in os.scandir(self.directory):
            if is_entry_name(item.name) and item.is_dir(follow_symlinks=False):
                files = [file.stat(follow_symlinks=False) for file in os.scandir(item.path)]
                size = sum(status.st_size for status in files)
                yield item.stat(follow_symlinks=False).st_mtime_ns, size, Path(item.path)

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


def _remove(path: Path) -> None:
    """Take an entry away in one step, then delete it."""
    doomed = temporary_path(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


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
