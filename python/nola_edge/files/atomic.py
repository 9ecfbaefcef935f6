"""Outputs that are absent or complete at every instant.

The order of a write: check everything; remove the temporaries of dead writers; make a temporary
folder beside the target, and the parent of both if it is missing; write; find every file again as
it was written and fsync it, then the folders; move the result into place with one rename that never
overwrites; look at it once more; fsync the parent. A killed process leaves at most empty parents,
and a temporary that the next run with the same target removes (:mod:`nola_edge.files.temporary`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import OutputError, printable
from nola_edge.files.mounts import file_system, shows_the_kernel
from nola_edge.files.obstacles import anything, names_below, nothing_yet, special_file
from nola_edge.files.parents import Parents, free_bytes, nearest_folder
from nola_edge.files.renaming import exchange, rename_new
from nola_edge.files.temporary import (
    NEW,
    REPLACED,
    keep,
    note_exchange,
    put_back,
    sweep,
    temporary_path,
)
from nola_edge.files.written import Written, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from nola_edge.files.obstacles import Obstacle


class AtomicOutput:
    """Write a file or a folder under a temporary name and move it into place when complete.

    A context manager: leave it normally to commit, by an exception (Ctrl-C included) to remove
    everything that was written. Missing parents of the target are created, and removed in the same
    way.

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
        Says what of a path is not of the kind that is written
        (:mod:`nola_edge.files.obstacles`); by default anything is.
    if_exists : str
        What to do about an existing target, for the message.

    Attributes
    ----------
    path : Path
        Where to write: an empty folder, or the name of a file that does not exist yet. Files are
        written through :meth:`file`.

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
        replaces: Obstacle = anything,
        if_exists: str = "choose another name or pass --force",
    ) -> None:
        self.target = Path(os.path.abspath(target))
        self._inputs = [Path(path) for path in inputs]
        self._force = force
        self._directory = directory
        self._expected_bytes = expected_bytes
        self._replaces = replaces
        self._if_exists = if_exists
        self._parents = Parents(self.target.parent)
        self._temporary: Path | None = None
        self._written = Written(Path())
        self._replaced = False  # by this output, and looked at
        self.path = Path()

    def __enter__(self) -> AtomicOutput:
        self._check_target()
        self.sweep()
        self.check()  # a sweep may have put back what an earlier writer had taken away
        try:
            with _as_output_error(self.target):
                self._make_temporary()
                self._check_movable()
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

    def file(self, name: str = "") -> AbstractContextManager[Path]:
        """Give the path of a new file of the output; leave it when the file is complete.

        What is written otherwise is not found again before it is published.

        Parameters
        ----------
        name : str
            Relative to a folder; empty for an output that is a file.
        """
        return self._written.file(name)

    def _make_temporary(self) -> None:
        # Known before it is made: a signal may come right after.
        self._temporary = temporary_path(self.target)
        self._parents.make_around(self._temporary)
        # Something inside the temporary is renamed into place, never the private folder itself.
        self.path = self._temporary / NEW
        if self._directory:
            self.path.mkdir()
        self._written = Written(self.path)

    def _discard(self) -> None:
        if self._temporary is not None:
            may_replace = (lambda _: True) if self._replaced else self._may_replace
            with contextlib.suppress(OSError):
                put_back(self._temporary, self.target, may_replace)
                self._parents.remove(self._temporary)
        self._parents.undo()

    def sweep(self) -> None:
        """Remove what dead writers of this target left, if it can be; entering does the same."""
        with contextlib.suppress(OSError):  # a folder to drop files in may not be listed
            sweep(self.target, self._may_replace)

    def check(self) -> None:
        """Refuse a target that cannot be written; entering does the same.

        Raises
        ------
        OutputError
        """
        self._check_target()
        free = free_bytes(self.target.parent)
        if self._expected_bytes > free:
            raise too_little_space(self.target, f"needs {self._expected_bytes} bytes", free)

    def _check_target(self) -> None:
        target = self.target
        if not target.name:
            raise OutputError("is not a name for an output", file=target)
        nearest_folder(target.parent)
        self.check_apart()  # first: another name, or --force, would be the wrong advice
        if os.path.lexists(target):
            with _as_output_error(target):
                self._check_replaceable()
            if not self._force:
                raise OutputError(f"exists already; {self._if_exists}", file=target)

    def check_apart(self) -> None:
        """Refuse a target that is an input, or lies in one, or holds one; entering does the same.

        Raises
        ------
        OutputError
        """
        target = self.target
        place = target.parent.resolve() / target.name
        for path in self._inputs:
            source = path.resolve()
            # Not Path.resolve: the target may be a link to itself.
            if place == source or os.path.realpath(place) == str(source):
                raise OutputError("is an input; inputs are never changed", file=target)
            if place.is_relative_to(source):
                raise OutputError(f"lies inside the input {printable(path)}", file=target)
            if source.is_relative_to(place):
                raise OutputError(f"contains the input {printable(path)}", file=target)

    def _check_replaceable(self) -> None:
        """Refuse what is not like the output, or cannot be moved away, with --force or without."""
        target = self.target
        special = special_file(target)
        if special is not None:
            raise OutputError(f"{special}, and never replaced; choose another name", file=target)
        if target.is_symlink():
            raise OutputError(
                "is a symbolic link, and never replaced; choose another name", file=target
            )
        if target.is_dir() != self._directory:
            kind = "folder" if target.is_dir() else "file"
            raise OutputError(
                f"is a {kind} already, but the output is not; choose another name, or remove it "
                "first",
                file=target,
            )
        if _holds_current_folder(target.resolve()):
            raise OutputError("is or holds the current folder; choose another", file=target)
        if os.path.ismount(target):
            raise OutputError(
                "is a mount point, which cannot be replaced; choose a name inside it",
                file=target,
            )
        in_the_way = self._in_the_way(target)
        if in_the_way is None:
            return
        found = (
            f"{in_the_way}, so --force does not replace it"
            if self._force
            else f"exists already, and {in_the_way}"
        )
        raise OutputError(f"{found}; choose another name, or remove it yourself", file=target)

    def _in_the_way(self, path: Path) -> str | None:
        """Say what of a path is neither what this writes nor nothing yet."""
        if path.is_symlink() or path.is_dir() != self._directory:
            return "is something else"
        return None if nothing_yet(path) else self._replaces(path)

    def _may_replace(self, path: Path) -> bool:
        return self._in_the_way(path) is None

    def _check_movable(self) -> None:
        """Refuse, before the work, a folder that could not be moved out of the way after it."""
        if not (self._directory and self._force and self.target.exists()):
            return
        if file_system(self.target) != "overlay":
            return
        assert self._temporary is not None
        occupied = self._temporary / "occupied"
        (occupied / "by this").mkdir(parents=True)
        try:
            os.rename(self.target, occupied)  # which nothing comes of, as that is not empty
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OutputError(
                    "lies in a lower layer of an overlay file system, such as a container's image, "
                    "from which no folder can be moved; choose another name, or remove it yourself",
                    file=self.target,
                ) from None

    def _commit(self) -> None:
        self._written.sync()
        if self._force and os.path.lexists(self.target):
            self._replace()
        elif not rename_new(self.path, self.target):
            raise OutputError(
                "appeared while the output was being written; it was left alone", file=self.target
            )
        self._check_published()
        try:
            sync_folder(self.target.parent)
            self._parents.sync()
        except OSError as error:
            raise OutputError(
                f"is complete, but its folder could not be forced to disk: {error.strerror}; "
                "a power failure might undo it",
                file=self.target,
            ) from None
        self._check_published()
        self._parents.keep()

    def _check_published(self) -> None:
        """Look at the output in its place; what tidies up may have begun before it was moved."""
        try:
            self._written.check(self.target)
        except OutputError:
            self._take_back()
            raise

    def _replace(self) -> None:
        """Put the output in another's place, and look at what that was: it may have changed.

        The other one is then part of the temporary, and removed with it.
        """
        assert self._temporary is not None
        names = names_below(self.target) if self.target.is_dir() else []
        self._check_replaced(self.target, [])
        note_exchange(self._temporary)
        if exchange(self.path, self.target):
            try:
                self._check_replaced(self.path, names)
            except BaseException:
                exchange(self.path, self.target)
                raise
            self._replaced = True
            return
        # No one step does it here; the output is absent between the two.
        replaced = self._temporary / REPLACED
        os.rename(self.target, replaced)
        try:
            self._check_replaced(replaced, names)
        except OutputError:
            if not rename_new(replaced, self.target):
                raise self._kept(replaced) from None
            raise
        if not rename_new(self.path, self.target):
            raise self._kept(replaced)

    def _check_replaced(self, path: Path, names: Sequence[str]) -> None:
        """Refuse to lose what stands at a path, unless all of it was there before the work."""
        in_the_way = self._in_the_way(path) if os.path.lexists(path) else None
        if in_the_way is None:
            return
        if path.is_dir() and names and set(names_below(path)) <= set(names):
            return  # some of it is gone since, and nothing has come
        raise OutputError(
            f"changed while the output was being written: it {in_the_way}; it was left alone",
            file=self.target,
        )

    def _kept(self, replaced: Path) -> OutputError:
        kept = keep(replaced, self.target)
        return OutputError(
            f"appeared while another was being replaced, which is {printable(kept.name)} now; both "
            "were left alone",
            file=self.target,
        )

    def _take_back(self) -> None:
        """Undo the last step; what was replaced is back then, or put back with the temporary."""
        if not self._written.holds_nothing_else(self.target):
            return  # somebody has put something there since
        if os.path.lexists(self.path) and exchange(self.path, self.target):
            return
        aside = temporary_path(self.target)  # that of the output may be gone
        aside.mkdir(mode=0o700)
        os.rename(self.target, aside / NEW)
        shutil.rmtree(aside, ignore_errors=True)


def _holds_current_folder(place: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(place)
    except OSError:  # it was deleted, and nothing holds it
        return False


def too_little_space(target: Path, needs: str, free: int) -> OutputError:
    """Return what to say of a disk with too few bytes free."""
    reason = _where_nothing_is_written(target) or f"{needs}, but the disk has {free} free"
    return OutputError(reason, file=target)


def _where_nothing_is_written(target: Path) -> str:
    with contextlib.suppress(OSError, OutputError):
        kind = shows_the_kernel(nearest_folder(target.parent))
        if kind:
            return f"lies in a {kind} file system, which holds no files; choose another place"
    return ""


def _output_error(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        reason = "no space left on the disk; nothing was kept"
    nowhere = _where_nothing_is_written(target)
    return OutputError(nowhere or f"cannot be written: {reason}", file=target)


@contextlib.contextmanager
def _as_output_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _output_error(target, error) from error
