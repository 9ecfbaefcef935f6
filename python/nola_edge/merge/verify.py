"""Check a merged checkpoint bit for bit against its base and adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments
from nola_edge.dtypes import safetensors_dtype
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.files.tensors import BLOCK_ELEMENTS
from nola_edge.merge.audit.compare import compare, stored_blocks
from nola_edge.merge.audit.compare_files import compare_files
from nola_edge.merge.audit.diagnosis import audit
from nola_edge.merge.audit.report import VerifyReport
from nola_edge.merge.blocks import read_merged, runs_of
from nola_edge.merge.low_rank import make_updates
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.windows import Runs, windows
from nola_edge.threads import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.audit.compare import Produce


def verify_checkpoint(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    check_base: bool = True,
    tensors_only: bool = False,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare a merged checkpoint with all that :func:`merge_checkpoint` writes.

    Every bit of every tensor, the headers, the index, and the files beside them: configuration,
    tokenizer, weights of other parts. Hidden files are not looked at.

    Where merged weights differ, as those of another program may, the report says how: what part of
    the wanted change is there, by how many ulps they differ, and which mistake explains that
    (:class:`~nola_edge.merge.audit.report.Difference`).

    Parameters
    ----------
    merged : path
    base : path or str
        As for :func:`merge_checkpoint`.
    adapter : as for :func:`~nola_edge.open_merged`
    num_threads : int, optional
    check_base : bool
    tensors_only : bool
        Compare names, dtypes, shapes and bytes of tensors and nothing else, as for a checkpoint
        that another program wrote: it may be sharded differently.
    progress : callable, optional
        Called with the number of bytes compared since the last call; those of merged tensors that
        differ count again, as they are measured.

    Returns
    -------
    VerifyReport

    Raises
    ------
    NolaEdgeError
        If a file is not what it claims, or adapter and base do not fit.
    """
    check_threads(num_threads)
    merged = arguments.path("merged", merged)
    arguments.path("base", base)
    adapters = load_adapters(adapter)
    with Checkpoint.open(base_path(base)) as checkpoint, Checkpoint.open(merged) as candidate:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        expected = _Expected(plan, num_threads)
        advance = progress or (lambda _: None)
        report = compare(expected, candidate.tensors, num_threads, advance)
        report.differences = audit(
            plan, candidate.tensors, report.differences, num_threads, advance
        )
        if not tensors_only:
            report.files += compare_files(plan, candidate)
        checkpoint.check_unchanged()
        candidate.check_unchanged()
    return report


class _Expected:
    """What base and adapters give."""

    def __init__(self, plan: MergePlan, num_threads: int | None) -> None:
        self._plan = plan
        self._num_threads = num_threads
        self.names = [*plan.base.tensors, *plan.added]
        self.merged = len(plan.merges)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name in self._plan.added:
            values = self._plan.added[name]
            return safetensors_dtype(values.dtype), tuple(values.shape)
        info = self._plan.tensor(name)[1]
        return info.dtype, tuple(info.shape)

    def blocks(self, name: str) -> Iterator[tuple[Runs, Produce]]:
        plan = self._plan
        whole = plan.replaced.get(name, plan.added.get(name))
        if whole is not None:
            yield from _whole_blocks(whole)
            return
        file, info = plan.tensor(name)
        if info.nbytes == 0 or name not in plan.merges:
            yield from stored_blocks(file, info)
            return
        for update in make_updates(plan.merges[name], info, self._num_threads):
            for window in windows(info, [update]):
                yield runs_of(info, window), partial(read_merged, file, info, update, window)


def _whole_blocks(tensor: Tensor) -> Iterator[tuple[Runs, Produce]]:
    def read(start: int, stop: int, _: memoryview) -> memoryview:
        return tensor.read(start, stop).view(np.uint8).data

    size = tensor.dtype.itemsize
    for start in range(0, tensor.size, BLOCK_ELEMENTS):
        stop = min(start + BLOCK_ELEMENTS, tensor.size)
        yield Runs(start * size, (stop - start) * size), partial(read, start, stop)
