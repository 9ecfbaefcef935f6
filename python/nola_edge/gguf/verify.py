"""Check a merged GGUF file bit for bit against its base and adapters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nola_edge.gguf.file import GgufFile
from nola_edge.gguf.layout import Layout
from nola_edge.gguf.model import model_of_gguf
from nola_edge.gguf.plan import GgufPlan, matched_tensors, plan_gguf
from nola_edge.gguf.quantization import WRITABLE_TYPES
from nola_edge.gguf.requantize import merge_rows, requantized_rows
from nola_edge.merge.blocks import BLOCK_BYTES, block_offset, read_merged, row_blocks
from nola_edge.merge.compare import Difference, VerifyReport, compare, stored_blocks
from nola_edge.merge.plan import load_adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nola_edge.adapter import Adapter
    from nola_edge.merge.compare import Produce
    from nola_edge.merge.update import RowUpdate
    from nola_edge.safetensors_file import TensorInfo

    Adapters = tuple[tuple[Adapter, float], ...]


def verify_gguf(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare a merged GGUF file with what base and adapters give.

    Metadata, the layout and every tensor are compared, the padding between them is not. Where
    merged tensors have another type than the base's, as after ``outtype``, they are compared in
    that type.

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
        plan = plan_gguf(file, adapters, outtype=_outtype(file, candidate, adapters))
        tensors = {name: (candidate, info) for name, info in candidate.tensors.items()}
        expected = _Expected(plan, num_threads)
        report = compare(expected, tensors, num_threads, progress or (lambda _: None))
        if report.identical and not _same_header(plan, candidate):
            detail = "metadata or layout are not the base's"
            report.differences.append(Difference("<header>", "values", detail))
        file.check_unchanged()
        candidate.check_unchanged()
    return report


def _outtype(base: GgufFile, candidate: GgufFile, adapters: Adapters) -> str | None:
    """Return the type that merged tensors were changed to, if they were.

    None, too, where they have several types: that is no merge of ours, and the comparison says so.
    """
    model = model_of_gguf(base)
    names = {
        target.tensor
        for adapter, _ in adapters
        for target in matched_tensors(base, model, adapter).values()
    }
    before = {base.tensors[name].dtype for name in names}
    after = {candidate.tensors[name].dtype for name in names if name in candidate.tensors}
    changed = after & set(WRITABLE_TYPES) if len(after) == 1 else set()
    if not changed and before - set(WRITABLE_TYPES):
        return "F16"  # as good as any other: they have the base's type, and no merge leaves that
    return changed.pop() if changed and before != after else None


def _same_header(plan: GgufPlan, candidate: GgufFile) -> bool:
    """Compare what stands before the tensors; metadata block by block."""
    base = plan.base
    layout = Layout(base, {name: merge.kind for name, merge in plan.merges.items()})
    infos = bytearray(len(layout.infos))
    if candidate.infos_start != base.infos_start or candidate.data_start != base.data_start:
        return False
    if candidate.size < base.infos_start + len(infos):
        return False
    candidate.read_into(memoryview(infos), base.infos_start)
    if bytes(infos) != layout.infos:
        return False
    for begin in range(0, base.infos_start, BLOCK_BYTES):
        count = min(BLOCK_BYTES, base.infos_start - begin)
        blocks = bytearray(count), bytearray(count)
        for file, block in zip((base, candidate), blocks, strict=True):
            file.read_into(memoryview(block), begin)
        if blocks[0] != blocks[1]:
            return False
    return True


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
        if merge.keeps_float(info):
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
