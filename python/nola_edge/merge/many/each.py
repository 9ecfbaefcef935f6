"""Merge one base with many adapters, each into its own output, reading the base only once."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.renames import Renames
from nola_edge.errors import ArgumentError, NolaEdgeError, OutputError
from nola_edge.files.atomic import AtomicOutput, too_little_space
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.folder import INDEX_NAME
from nola_edge.files.hub import base_path
from nola_edge.files.parents import Parents, free_bytes
from nola_edge.merge.many.groups import Groups, WantedMerge
from nola_edge.merge.many.output_names import name_outputs
from nola_edge.merge.many.process_share import Share
from nola_edge.merge.write import MergeReport, write_merges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nola_edge.merge.write import CheckpointMerge


def merge_each(
    base: str | Path,
    adapters: Any,
    output: str | Path,
    *,
    force: bool = False,
    skip_existing: bool = False,
    num_threads: int | None = None,
    check_base: bool = True,
    check_result: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
    shard: str | tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[MergeReport, ...]:
    """Merge a checkpoint with each of many adapters and write one result per adapter.

    Each result has the same bytes as :func:`merge_checkpoint` writes for its adapter alone. All
    adapters are checked before anything is written; then the base is read once for all of them. If
    there are too many for the limits on open files or memory, it is read once per group of them.

    Each result is absent (or, with `force`, what it was) until it is complete and on disk. They
    appear one after the other once their whole group is written, so a failure or a kill leaves only
    complete ones, and `skip_existing` continues with the others.

    Parameters
    ----------
    base : path or str
        As for :func:`merge_checkpoint`.
    adapters : sequence of Adapter, path or pair (adapter, weight), or mapping from names to these
        A result's name is that of the adapter's folder, the stem of its packed file, or the last
        part of its Hub id, and must be plain and unique; a mapping chooses others. In a mapping, a
        list of adapters or pairs is summed into one result, as :func:`merge_checkpoint` does.
    output : path
        The folder of the results, created if necessary: ``output/<name>``, or
        ``output/<name>.safetensors`` if the base is a file.
    force : bool
        Replace existing results.
    skip_existing : bool
        Skip adapters whose result already exists. What is there must have the files, tensors,
        dtypes and metadata of the result, or is refused; contents are not compared, which
        :func:`nola_edge.verify_checkpoint` does.
    num_threads : int, optional
        Default: the processors this process may use, divided among torchrun's processes on this
        machine if `shard` is ``"auto"``. The bytes do not depend on it.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    check_result : bool
        Refuse another result than a packed adapter records for this base; see
        :func:`merge_checkpoint`.
    rename : mapping from NEW to OLD, or iterable of "NEW=OLD", optional
        See :func:`merge_checkpoint`.
    shard : pair (i, n), "i/n" or "auto", optional
        Write only results number i, i + n, …, as process i of n, counted from 0; with ``"auto"``,
        torchrun, Slurm or Open MPI determine both. Names are checked for all.
    progress : callable, optional
        Called, from any thread, with the number of bytes written since the last call.

    Returns
    -------
    tuple of MergeReport
        One for each result that this call wrote, in the order given. Results of one group share
        their `seconds`.

    Raises
    ------
    NolaEdgeError
        If an argument or an input cannot be used; nothing is written then. If a merged weight is
        not finite, an input changes meanwhile, or an output cannot be written; the results in the
        folder are then complete.
    """
    if force and skip_existing:
        raise ArgumentError("contradicts force; choose one", field="skip_existing")
    folder = arguments.path("output", output)
    arguments.path("base", base)
    share = Share.of(shard)
    named = name_outputs(adapters)
    threads = share.threads(num_threads)
    mine = share.take(list(named.items()))
    if not mine:
        return ()
    reports: list[MergeReport] = []
    with Checkpoint.open(base_path(base)) as checkpoint:
        suffix = "" if checkpoint.is_folder else ".safetensors"
        wanted = [WantedMerge(folder / f"{name}{suffix}", given) for name, given in mine]
        checkpoint.companions()  # refuses what could not be carried over
        renames = Renames(rename)
        groups = Groups(
            checkpoint,
            wanted,
            check_base=check_base,
            check_result=check_result,
            renames=renames,
            num_threads=threads,
            skip=_is_there if skip_existing else lambda _: False,
        )
        renames.check_used()
        inputs = _near(folder, [checkpoint.path, *_paths(named), *groups.adapter_paths])
        targets = [
            AtomicOutput(
                path,
                inputs=inputs,
                force=force,
                directory=checkpoint.is_folder,
                replaces=earlier.obstacle,
                if_exists="go on with --skip-existing, replace it with --force, or choose another "
                "folder",
            )
            for path, earlier in groups.earlier.items()
        ]
        _check(folder, targets, inputs, groups.nbytes)
        there = [item.output for item in wanted if item.output not in groups.earlier]
        skipped = [AtomicOutput(path, inputs=inputs, directory=True) for path in there]
        for target in skipped:
            target.check_apart()
        for target in (AtomicOutput(folder, directory=True), *skipped):
            # What a process left that was killed after it had put its output in place.
            target.sweep()
        with _made(folder, keep=share.count > 1):
            for merges in groups:
                begin = time.perf_counter()
                found = write_merges(
                    checkpoint,
                    merges,
                    inputs,
                    force=force,
                    num_threads=threads,
                    progress=progress,
                )
                seconds = time.perf_counter() - begin
                reports += [
                    merge.report(seconds, check_base, expected_of)
                    for merge, expected_of in zip(merges, found, strict=True)
                ]
    return tuple(reports)


def _check(
    folder: Path, targets: Sequence[AtomicOutput], inputs: Sequence[Path], nbytes: int
) -> None:
    """Refuse outputs that cannot be where they are wanted, before anything is written."""
    place = folder.absolute()
    if place.is_dir():
        for target in targets:
            target.check()
        _check_holds_no_model(folder)
    elif place.exists():
        raise OutputError(
            "is a file; give a folder, in which each output gets its own", file=folder
        )
    else:
        AtomicOutput(folder, inputs=inputs, directory=True).check()
    free = free_bytes(place)
    if nbytes > free:
        several = f"{len(targets)} outputs need" if len(targets) > 1 else "1 output needs"
        raise too_little_space(folder, f"{several} {nbytes} bytes", free)


def _check_holds_no_model(folder: Path) -> None:
    """Refuse a folder that is a model, or an adapter, itself."""
    for name in ("config.json", "adapter_config.json", INDEX_NAME):
        if os.path.lexists(folder / name):
            raise OutputError(
                f"holds a {name}, so it is a model or an adapter itself; give a folder in which "
                "each output gets its own",
                file=folder,
            )


@contextlib.contextmanager
def _made(folder: Path, keep: bool) -> Iterator[None]:
    """Make the folder of the outputs; after a failure remove it, if it is ours and empty.

    One that other processes write to is kept: they might come between a look and a write.
    """
    made = Parents(folder.absolute())
    try:
        try:
            made.make()
            made.sync()
        except OSError as error:
            raise OutputError(f"cannot be made: {error.strerror}", file=folder) from None
        yield
    except BaseException:
        if not keep:
            made.undo()
        raise


def _is_there(merge: CheckpointMerge) -> bool:
    output = merge.output
    if not os.path.lexists(output):
        return False
    try:
        merge.earlier.check_like(output)
    except NolaEdgeError as error:
        raise OutputError(
            f"exists but is not a result of this merge ({error.message}), so it does not count as "
            "an earlier output; remove it, or choose another folder",
            file=output,
        ) from None
    return True


def _paths(named: dict[str, Any]) -> Iterable[Path]:
    """Yield the local paths of all adapters, those of other processes' share too."""
    for given in named.values():
        for item in given:
            adapter = item[0] if isinstance(item, tuple) and item else item
            path = adapter.path if isinstance(adapter, LowRankAdapter) else adapter
            if isinstance(path, str | Path) and os.path.exists(path):
                yield Path(path)


def _near(folder: Path, inputs: Iterable[Path]) -> list[Path]:
    """Keep the inputs that an output in the folder might touch; a thousand outputs check them."""
    place = folder.resolve()
    found = {path: path.resolve() for path in inputs}
    return [p for p, at in found.items() if at.is_relative_to(place) or place.is_relative_to(at)]
