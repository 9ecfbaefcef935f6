"""Check a merged GGUF file bit for bit against its base and adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.errors import NotFiniteError, printable
from nola_edge.files.gguf import GgufFile
from nola_edge.files.gguf_types import FLOAT_TYPES
from nola_edge.gguf.layout import Layout
from nola_edge.gguf.model import model_of_gguf
from nola_edge.gguf.plan import GgufPlan, matched_tensors, plan_gguf
from nola_edge.gguf.quantization import NEAREST, ROUNDINGS, WRITABLE_TYPES
from nola_edge.merge.audit.compare import compare
from nola_edge.merge.audit.compare_files import first_difference
from nola_edge.merge.audit.diagnosis import audit
from nola_edge.merge.audit.report import FileDifference, VerifyReport
from nola_edge.merge.blocks import read_runs
from nola_edge.merge.plan import load_adapters
from nola_edge.threads import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter

    Adapters = tuple[tuple[LowRankAdapter, float], ...]

_LISTED = 4
#: Tensors whose first window shows how all were quantised.
_SAMPLES = 4


def verify_gguf(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    outtype: str | None = None,
    rounding: str | None = None,
    num_threads: int | None = None,
    tensors_only: bool = False,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare a merged GGUF file with everything that :func:`merge_gguf` writes.

    Every byte counts: metadata, the order of the tensors, the tensors, the padding between them. If
    merged weights differ, the report says how, as :func:`~nola_edge.verify_checkpoint` does; for
    quantised types in steps, which are the scales of their blocks.

    Parameters
    ----------
    merged, base : path
    adapter : as for :func:`~nola_edge.gguf.merge_gguf`
    outtype : str, optional
        Type that merged tensors must have; default: the type that they have.
    rounding : str, optional
        How quantised ones must be written; default: the way that more of them are written in.
    num_threads : int, optional
    tensors_only : bool
        Compare only names, types, shapes and bytes of tensors.
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
    merged, base = arguments.path("merged", merged), arguments.path("base", base)
    adapters = load_adapters(adapter)
    with GgufFile.open(base) as file, GgufFile.open(merged) as candidate:
        kind = _outtype(file, candidate, adapters) if outtype is None else outtype
        plan = plan_gguf(
            file, adapters, outtype=kind, rounding=NEAREST if rounding is None else rounding
        )
        if rounding is None:
            plan = replace(plan, rounding=_rounding(plan, candidate))
        tensors = {name: (candidate, info) for name, info in candidate.tensors.items()}
        advance = progress or (lambda _: None)
        report = compare(plan, tensors, num_threads, advance)
        report.differences = audit(plan, tensors, report.differences, num_threads, advance)
        if not tensors_only:
            name = candidate.path.name
            found = _rest(plan, candidate)
            report.files += [FileDifference(name, problem, detail) for problem, detail in found]
        file.check_unchanged()
        candidate.check_unchanged()
    return report


def _outtype(base: GgufFile, candidate: GgufFile, adapters: Adapters) -> str | None:
    """Return the type that merged tensors were changed to, if they were.

    Also None if they have several types: no merge of ours gives that, and the comparison says so.
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


def _rounding(plan: GgufPlan, candidate: GgufFile) -> str:
    """Return how merged tensors were quantised: the way that makes the most of some samples.

    Where no sample is as any way makes it, as after a fault, they are judged as most files are
    made: single bytes prove nothing, as small changes leave most of them as they were.
    """
    quantized = [
        name
        for name, merge in plan.merges.items()
        if merge.kind not in FLOAT_TYPES
        and name in candidate.tensors
        and candidate.tensors[name].dtype == merge.kind
        and candidate.tensors[name].shape == plan.base.tensors[name].shape
    ]
    samples = quantized[:: -(-len(quantized) // _SAMPLES) or 1]
    agreed = {
        rounding: sum(_agree(replace(plan, rounding=rounding), candidate, n) for n in samples)
        for rounding in ROUNDINGS
    }
    return max(ROUNDINGS, key=agreed.__getitem__)  # the first of several


def _agree(plan: GgufPlan, candidate: GgufFile, name: str) -> bool:
    """Tell whether the first window of a merged tensor is as planned."""
    piece = next(plan.result(name).pieces(1))
    have = memoryview(bytearray(piece.runs.nbytes))
    read_runs(candidate, candidate.tensors[name], piece.runs, have)
    try:
        want = piece.make(memoryview(bytearray(piece.nbytes)))
    except NotFiniteError:
        return False
    return have == memoryview(want)


def _rest(plan: GgufPlan, candidate: GgufFile) -> Iterator[tuple[str, str]]:
    """Yield problem and detail of what differs besides the tensors."""
    base = plan.base
    metadata = _metadata(base, candidate)
    if metadata is not None:
        yield "metadata", metadata
    if set(candidate.tensors) != set(base.tensors):
        return
    if list(candidate.tensors) != list(base.tensors):
        yield "layout", "the tensors are in another order"
        return
    kinds = {name: merge.kind for name, merge in plan.merges.items()}
    layout = Layout(base, kinds)
    if all(
        (info.start, info.dtype) == (layout.offsets[name], kinds.get(name, info.dtype))
        for name, info in candidate.tensors.items()
    ):
        padding = _padding(layout, base, candidate)
        if padding is not None:
            yield "padding", padding


def _metadata(base: GgufFile, candidate: GgufFile) -> str | None:
    if candidate.version != base.version:
        return f"is of GGUF version {candidate.version} instead of {base.version}"
    # By their text, since NaN is not equal to itself and True is equal to 1.
    have, want = ({k: repr(v) for k, v in f.metadata.items()} for f in (candidate, base))
    keys = [key for key in {**want, **have} if have.get(key) != want.get(key)]
    if keys:
        more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
        return f"the metadata differ in {', '.join(map(printable, keys[:_LISTED]))}{more}"
    if list(have) != list(want):
        return "the metadata are in another order"
    end = min(base.infos_start, candidate.infos_start)
    position = first_difference(candidate, base, 0, end)
    if position is None and candidate.infos_start == base.infos_start:
        return None
    return f"the metadata differ from byte {end if position is None else position} on"


def _padding(layout: Layout, base: GgufFile, candidate: GgufFile) -> str | None:
    """Compare what lies between the tensors, which are where they should be."""
    if candidate.size != layout.size:
        return f"has {candidate.size} bytes instead of {layout.size}"
    if candidate.infos_start == base.infos_start:
        infos = bytearray(len(layout.infos))
        candidate.read_into(memoryview(infos), base.infos_start)
        if infos != layout.infos:
            return "the bytes before the first tensor differ"
    for begin, end, source in layout.padding():
        have, want = bytearray(end - begin), bytearray(end - begin)
        candidate.read_into(memoryview(have), begin)
        if source is not None:
            base.read_into(memoryview(want), source)
        if have != want:
            return f"the padding at byte {begin} differs"
    return None
