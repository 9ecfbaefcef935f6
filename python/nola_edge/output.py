"""Outputs that are absent or complete at every instant.

The order of a write: check everything; remove stale temporaries that nobody holds; make a locked
temporary directory beside the target; write; fsync files, then directories; move the result into
place with one rename that never overwrites; fsync the parent. A killed process leaves at most a
temporary, which the next run with the same target removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import OutputError, printable
from nola_edge.replaceable import nothing_yet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nola_edge.replaceable import Replaceable

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_KERNEL_COPY = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_COPY_BUFFER = 1 << 20
_LONGEST_IN_PATTERN = 200


class AtomicOutput:
    """Write a file or a folder under a temporary name and move it into place when complete.

    A context manager: leave it normally to commit, by an exception (Ctrl-C included) to remove
    everything that was written.

    Parameters
    ----------
    target : path
    inputs : sequence of path
        Files and folders that are read; the target may neither be nor contain nor lie in one.
    force : bool
        Replace an existing target, in one step, if `replaces` allows it.
    directory : bool
        Whether the target is a folder.
    expected_bytes : int, optional
        Refuse at once if the disk has less space.
    replaces : callable
        Tells whether what is there is of the kind that is written (:mod:`nola_edge.replaceable`);
        by default only what is empty is.
    if_exists : str
        What to do about an existing target, for the message.

    Attributes
    ----------
    path : Path
        Where to write: an empty folder, or the name of a file that does not exist yet.

    Raises
    ------
    OutputError
        If the target cannot be written, on entry or on leaving; nothing is left behind.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        inputs: Sequence[str | Path] = (),
        force: bool = False,
        directory: bool,
        expected_bytes: int = 0,
        replaces: Replaceable = nothing_yet,
        if_exists: str = "choose another name or pass --force",
    ) -> None:
        self.target = Path(os.path.abspath(target))
        self._inputs = [Path(path) for path in inputs]
        self._force = force
        self._directory = directory
        self._expected_bytes = expected_bytes
        self._replaces = replaces
        self._if_exists = if_exists
        self._lock = -1
        self._temporary: Path | None = None
        self.path = Path()

    def __enter__(self) -> AtomicOutput:
        self.check()
        try:
            with _as_output_error(self.target):
                self.sweep()
                self._make_temporary()
                # Something inside the temporary folder is renamed into place, never the locked
                # folder itself.
                assert self._temporary is not None
                self.path = self._temporary / ("folder" if self._directory else "file")
                if self._directory:
                    self.path.mkdir()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            if kind is None:
                with _as_output_error(self.target):
                    self._commit()
            elif isinstance(error, OSError):
                raise _output_error(self.target, error) from error
        finally:
            self._discard()

    def _discard(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check(self) -> None:
        """Refuse a target that cannot be written; entering does the same.

        Raises
        ------
        OutputError
        """
        target = self.target
        if not target.name:
            raise OutputError("is not a name for an output", file=target)
        if not target.parent.is_dir():
            raise OutputError("its parent folder does not exist; make it first", file=target)
        if not self._force and os.path.lexists(target):
            raise OutputError(f"exists already; {self._if_exists}", file=target)
        place = target.parent.resolve() / target.name
        for path in self._inputs:
            source = path.resolve()
            if place == source or place.resolve() == source:
                raise OutputError("is an input; inputs are never changed", file=target)
            if place.is_relative_to(source):
                raise OutputError(f"lies inside the input {printable(path)}", file=target)
            if source.is_relative_to(place):
                raise OutputError(f"contains the input {printable(path)}", file=target)
        if self._force and target.is_symlink():
            raise OutputError("is a symbolic link; remove it first", file=target)
        if self._force and target.exists() and target.is_dir() != self._directory:
            kind = "folder" if target.is_dir() else "file"
            raise OutputError(
                f"is a {kind} already, and the output is not; remove it first", file=target
            )
        if self._force and target.exists() and not (nothing_yet(target) or self._replaces(target)):
            raise OutputError(
                "holds something that this does not write, so --force does not replace it; choose "
                "another name, or remove it yourself",
                file=target,
            )
        free = shutil.disk_usage(target.parent).free
        if self._expected_bytes > free:
            raise OutputError(
                f"needs {self._expected_bytes} bytes, the disk has {free} free", file=target
            )

    @property
    def _pattern(self) -> str:
        # A name may be as long as the file system allows, and the temporary's is longer.
        name = self.target.name
        if len(os.fsencode(name)) > _LONGEST_IN_PATTERN:
            name = hashlib.sha256(os.fsencode(name)).hexdigest()
        return f".nola-edge-{name}-"

    def sweep(self) -> None:
        """Remove temporaries of this target whose writer is gone."""
        for entry in os.scandir(self.target.parent):
            name = entry.name
            if not (name.startswith(self._pattern) and name.endswith(".partial")):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(fd)

    def _make_temporary(self) -> None:
        while True:
            # Known before it is made: a signal may come right after.
            path = self.target.parent / f"{self._pattern}{secrets.token_hex(4)}.partial"
            self._temporary = path
            path.mkdir(mode=0o700)
            # A sweeper may come between mkdir and flock; it wins, and another name is taken.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._lock), os.stat(path)):
                    return
            self._discard()

    def _commit(self) -> None:
        _sync_tree(self.path)
        target = self.target
        if self._force and os.path.lexists(target):
            assert self._temporary is not None
            _exchange(self.path, target, self._temporary / "old")
        elif not _rename_new(self.path, target, self._directory):
            raise OutputError(
                "appeared while the output was written; it was left alone", file=target
            )
        try:
            _sync(target.parent)
        except OSError as error:
            raise OutputError(
                f"is complete, but its folder could not be forced to disk: {error.strerror}; "
                "a power failure might undo it",
                file=target,
            ) from None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(path: Path) -> None:
    """Force a file, or a folder's files and then its folders from the leaves up, to disk."""
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename with flags, by the C library's renameat2 (Linux).

    Raises
    ------
    OSError
        ENOSYS where the C library lacks it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _rename_new(source: Path, target: Path, directory: bool) -> bool:
    """Rename unless the target exists; return whether it was done."""
    try:
        _renameat2(source, target, _RENAME_NOREPLACE)
        return True
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
    # Without renameat2 a hard link never overwrites either. For a folder a check remains, and
    # rename(2) itself refuses to replace one that is not empty.
    if not directory:
        try:
            os.link(source, target)
        except FileExistsError:
            return False
        return True
    if os.path.lexists(target):
        return False
    os.rename(source, target)
    return True


def _exchange(source: Path, target: Path, old: Path) -> None:
    """Put the new output in the old one's place; the old one is then removed as temporary."""
    try:
        _renameat2(source, target, _RENAME_EXCHANGE)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    if not source.is_dir():
        os.replace(source, target)
        return
    # No one step replaces a folder here; the output is absent between the two.
    os.rename(target, old)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(old, target)
        raise


def _output_error(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        reason = "no space left on the disk; nothing was kept"
    return OutputError(f"cannot be written: {reason}", file=target)


@contextlib.contextmanager
def _as_output_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _output_error(target, error) from error


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


_SYNC_FILE_RANGE_WRITE = 2


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def start_writeback(fd: int, offset: int, count: int) -> None:
    """Let the disk begin with bytes just written, so that the final fsync has less to wait for.

    A hint (Linux's sync_file_range), without effect on what is promised.
    """
    function = _sync_file_range()
    if function is not None:
        function(fd, offset, count, _SYNC_FILE_RANGE_WRITE)


def copy_range(source: int, start: int, target: int, offset: int, count: int) -> None:
    """Copy bytes between file descriptors, within the kernel where it can.

    Parameters
    ----------
    source, target : int
        File descriptors.
    start, offset : int
        Positions in source and target.
    count : int
        Bytes.

    Raises
    ------
    OSError
        If writing fails, or the source ends early.
    """
    done = 0
    kernel = hasattr(os, "copy_file_range")
    while done < count:
        if kernel:
            try:
                copied = os.copy_file_range(
                    source, target, count - done, start + done, offset + done
                )
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                kernel = False
                continue
        else:
            block = os.pread(source, min(_COPY_BUFFER, count - done), start + done)
            pwrite_all(target, block, offset + done)
            copied = len(block)
        if copied == 0:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        done += copied


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content; the copy gets the mode of a new file."""
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            copy_range(read, 0, write, 0, os.fstat(read).st_size)
        finally:
            os.close(write)
    finally:
        os.close(read)
