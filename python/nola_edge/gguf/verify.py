"""Check a merged GGUF file bit for bit against its base and adapters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nola_edge.gguf.file import GgufFile
from nola_edge.gguf.layout import Layout
from nola_edge.gguf.plan import GgufPlan, plan_gguf
from nola_edge.gguf.requantize import merge_rows, requantized_rows
from nola_edge.gguf.types import FLOAT_TYPES
from nola_edge.merge.blocks import block_offset, read_merged, row_blocks
from nola_edge.merge.compare import Difference, VerifyReport, compare, stored_blocks
from nola_edge.merge.plan import load_adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nola_edge.merge.compare import Produce
    from nola_edge.merge.update import RowUpdate
    from nola_edge.safetensors_file import TensorInfo


def verify_gguf(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare a merged GGUF file with what base and adapters give.

    Metadata, the layout and every tensor are compared. Where merged tensors have another type than
    the base's, as after ``outtype``, they are compared in that type.

    Parameters
    ----------
    merged, base : path
    adapter : as for :func:`~nola_edge.gguf.merge_gguf`
    num_threads : int, optional
    progress : callable, optional
        Called with the number of bytes compared since the last call.

    Returns
    -------
    VerifyReport

    Raises
    ------
    NolaEdgeError
        If a file is not what it claims, or adapter and base do not fit.
    """
    adapters = load_adapters(adapter)
    with GgufFile.open(base) as file, GgufFile.open(merged) as candidate:
        plan = plan_gguf(file, adapters, outtype=_outtype(file, candidate))
        tensors = {name: (candidate, info) for name, info in candidate.tensors.items()}
        expected = _Expected(plan, num_threads)
        report = compare(expected, tensors, num_threads, progress or (lambda _: None))
        if report.identical:
            layout = Layout(file, {name: merge.kind for name, merge in plan.merges.items()})
            header = bytearray(len(layout.header))
            candidate.read_into(memoryview(header)[: min(len(header), candidate.size)], 0)
            if bytes(header) != layout.header:
                detail = "metadata or layout are not the base's"
                report.differences.append(Difference("<header>", "values", detail))
        file.check_unchanged()
        candidate.check_unchanged()
    return report


def _outtype(base: GgufFile, candidate: GgufFile) -> str | None:
    """Return the one type that tensors were changed to, if any were."""
    changed = {
        info.dtype
        for name, info in candidate.tensors.items()
        if name in base.tensors and base.tensors[name].dtype != info.dtype
    }
    return changed.pop() if len(changed) == 1 else None


class _Expected:
    """What base and adapters give."""

    def __init__(self, plan: GgufPlan, num_threads: int | None) -> None:
        self._plan = plan
        self._num_threads = num_threads
        self.names = list(plan.base.tensors)
        self.merged = len(plan.merges)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        info = self._plan.base.tensors[name]
        merge = self._plan.merges.get(name)
        return (info.dtype if merge is None else merge.kind), info.shape

    def blocks(self, name: str) -> Iterator[tuple[int, int, Produce]]:
        file, info = self._plan.base, self._plan.base.tensors[name]
        if info.nbytes == 0 or name not in self._plan.merges:
            yield from stored_blocks(file, info)
            return
        merge = self._plan.merges[name]
        update = merge.update(info.shape, self._num_threads)
        if info.dtype == merge.kind and merge.kind in FLOAT_TYPES:
            for rows in row_blocks(info):
                begin, end = block_offset(info, rows[0]), block_offset(info, rows[1])
                yield begin, end - begin, partial(read_merged, file, info, update, rows)
            return
        row_bytes = merge.row_bytes(info)
        for rows in requantized_rows(info):
            count = (rows[1] - rows[0]) * row_bytes
            yield rows[0] * row_bytes, count, partial(self._merged, info, merge.kind, update, rows)

    def _merged(
        self, info: TensorInfo, kind: str, update: RowUpdate, rows: tuple[int, int], _: memoryview
    ) -> memoryview:
        block, _survival = merge_rows(self._plan.base, info, kind, update, rows)
        return block.reshape(-1).data
