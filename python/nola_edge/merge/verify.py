"""Check a merged checkpoint bit for bit against its base and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.renames import Renames
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.merge.audit.compare import compare
from nola_edge.merge.audit.compare_files import compare_files
from nola_edge.merge.audit.diagnosis import audit
from nola_edge.merge.audit.report import VerifyReport
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.threads import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def verify_checkpoint(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | Renames | None = None,
    tensors_only: bool = False,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare a merged checkpoint with everything that :func:`merge_checkpoint` writes.

    Every bit of every tensor, the headers, the index, and the accompanying files: configuration,
    tokenizer, weights of other parts. Hidden files are ignored.

    If merged weights differ, as those of another program may, the report says how: what part of the
    wanted change is there, by how many ulps they differ, and which mistake explains it
    (:class:`~nola_edge.merge.audit.report.Difference`).

    Parameters
    ----------
    merged : path
    base : path or str
        As for :func:`merge_checkpoint`.
    adapter : as for :func:`~nola_edge.open_merged`
    num_threads : int, optional
    check_base : bool
    rename
        As for :func:`merge_checkpoint`; a caller who passes :class:`Renames` checks that they were
        used.
    tensors_only : bool
        Compare only names, dtypes, shapes and bytes of tensors, for a checkpoint that another
        program wrote: it may be sharded differently.
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
    renames = rename if isinstance(rename, Renames) else Renames(rename)
    adapters = load_adapters(adapter)
    with Checkpoint.open(base_path(base)) as checkpoint, Checkpoint.open(merged) as candidate:
        plan = plan_merge(checkpoint, adapters, check_base=check_base, renames=renames)
        if renames is not rename:
            renames.check_used()
        advance = progress or (lambda _: None)
        report = compare(plan, candidate.tensors, num_threads, advance)
        report.differences = audit(
            plan, candidate.tensors, report.differences, num_threads, advance
        )
        if not tensors_only:
            report.files += compare_files(plan, candidate)
        checkpoint.check_unchanged()
        candidate.check_unchanged()
    return report
