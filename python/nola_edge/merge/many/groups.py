"""Divide many merges of one base into groups that memory and open files allow."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_edge.merge.low_rank import needs_of, total_rank
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.merge.windows import strip_memory
from nola_edge.merge.write import CheckpointMerge, expectation_of
from nola_edge.threads import thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from nola_edge.adapters.renames import Renames
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.merge.earlier_output import EarlierOutput
    from nola_edge.merge.plan import MergePlan

#: What the adapters of a group may hold in memory: whole tensors, coefficients, factors in use.
GROUP_BYTES = 48 << 20
#: Descriptors left to what is open for a moment, and to the rest of the program.
_SPARE_FILES = 32


class WantedMerge(NamedTuple):
    """A merge as it was asked for.

    Attributes
    ----------
    output : Path
    adapters : object
        What :func:`~nola_edge.merge.plan.load_adapters` takes.
    """

    output: Path
    adapters: Any

    def plan(
        self, base: Checkpoint, *, check_base: bool, check_result: bool, renames: Renames | None
    ) -> CheckpointMerge:
        """Read and check the adapters; options are those of :class:`Groups`."""
        adapters = load_adapters(self.adapters)
        plan = plan_merge(base, adapters, check_base=check_base, renames=renames)
        wanted = expectation_of(plan, renames, check_result=check_result)
        return CheckpointMerge.of(plan, self.output, wanted)


class Groups:
    """The merges, planned, in groups to be written together; iterated over once.

    All are planned, and so checked, at once. Only the plans of the first group are kept: adapters
    may bring whole tensors, and memory must not grow with their number. The others are read again
    when it is their turn.

    Parameters
    ----------
    base : Checkpoint
    wanted : iterable of WantedMerge
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    check_result : bool
        Refuse another result than an adapter records for this base.
    renames : Renames, optional
        Names that the base has otherwise.
    num_threads : int, optional
        That will write; with more, the factors of more weights are in use at a time.
    skip : callable, optional
        Says of a planned merge that it shall not be written.

    Attributes
    ----------
    earlier : dict
        Output that is to be written -> what an earlier one is like.
    nbytes : int
        Bytes of the weight files of all outputs.
    adapter_paths : list of Path
        Where the adapters were loaded from.

    Raises
    ------
    NolaEdgeError
        If an adapter cannot be used with the base.
    """

    def __init__(
        self,
        base: Checkpoint,
        wanted: Iterable[WantedMerge],
        *,
        check_base: bool,
        check_result: bool = True,
        renames: Renames | None = None,
        num_threads: int | None,
        skip: Callable[[CheckpointMerge], bool] = lambda _: False,
    ) -> None:
        self.earlier: dict[Path, EarlierOutput] = {}
        self.nbytes = 0
        self.adapter_paths: list[Path] = []
        self._base = base
        self._options: dict[str, Any] = {
            "check_base": check_base,
            "check_result": check_result,
            "renames": renames,
        }
        self._groups: list[list[WantedMerge]] = []
        self._planned: list[CheckpointMerge] = []
        most = _files_at_once()
        files = 0
        threads = thread_count(num_threads)
        room = 0
        for item in wanted:
            merge = item.plan(base, **self._options)
            self.adapter_paths += merge.adapter_paths
            if skip(merge):
                continue
            self.earlier[merge.output] = merge.earlier
            need = _memory(merge.plan, threads)
            needed = _files(merge.plan)
            if not self._groups or need > room or needed > files:
                self._groups.append([])
                room, files = GROUP_BYTES, most
            room -= need
            files -= needed
            self._groups[-1].append(item)
            if len(self._groups) == 1:
                self._planned.append(merge)
            self.nbytes += merge.nbytes

    def __iter__(self) -> Iterator[list[CheckpointMerge]]:
        merges = self._planned
        for group in self._groups:
            if not merges:
                merges.extend(item.plan(self._base, **self._options) for item in group)
            yield merges
            merges.clear()


def _memory(plan: MergePlan, threads: int) -> int:
    """Return the bytes that a plan holds, and that its factors take while it is written."""
    held = sum(adapter.held_bytes for adapter, _ in plan.adapters)
    factors = 0
    for name, terms in plan.merges.items():
        info = plan.tensor(name)[1]
        if info.size:
            factors = max(factors, strip_memory(info, total_rank(terms), threads, needs_of(terms)))
    return held + factors


def _files(plan: MergePlan) -> int:
    """Return how many files an output keeps open: its current one, and its adapters'."""
    return 1 + sum(adapter.open_files for adapter, _ in plan.adapters)


def _files_at_once() -> int:
    """Return how many more files can be open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    used = 0
    with contextlib.suppress(OSError):
        used = len(os.listdir("/dev/fd"))
    return limit - used - _SPARE_FILES
