"""Write a merged checkpoint: everything is checked first, then the files are written one by one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_edge import arguments
from nola_edge.adapters.expected import FOLDER, ONE_FILE
from nola_edge.adapters.renames import Renames
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.content_hash import expected_hash
from nola_edge.files.hub import base_path
from nola_edge.merge.earlier_output import EarlierOutput
from nola_edge.merge.expectation import Expectation, base_fingerprint_of, expectation
from nola_edge.merge.heads import label_notes
from nola_edge.merge.layout import OutputFile, output_files, write_companions
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.weight_files import WeightFile, write_together
from nola_edge.threads import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


@dataclass(frozen=True)
class MergeReport:
    """What :func:`merge_checkpoint` wrote.

    Attributes
    ----------
    output : Path
    tensors : int
        Tensors written.
    merged, replaced, added : int
        Of these, how many were merged, replaced by or added from an adapter.
    nbytes : int
        Bytes of all weight files.
    seconds : float
    carried_weights : tuple of str
        Weight files of other parts of the model, copied unchanged.
    left_behind : tuple of str
        What was not copied, because it does not belong to the merged model: other copies of the
        weights, an adapter, checkpoints of a training run.
    notes : tuple of str
        What to know before the output is loaded, one line each.
    base_checked : bool
        Whether every adapter recorded a fingerprint of its base, and this is that base; or the
        result is the one that the adapter expects of it.
    expected_of : str or None
        Name of the base of which the adapter expects just this result; None if there was nothing
        to compare it with.
    """

    output: Path
    tensors: int
    merged: int
    replaced: int
    added: int
    nbytes: int
    seconds: float
    carried_weights: tuple[str, ...]
    left_behind: tuple[str, ...]
    notes: tuple[str, ...]
    base_checked: bool
    expected_of: str | None = None


def merge_checkpoint(
    base: str | Path,
    adapter: Any,
    output: str | Path,
    *,
    force: bool = False,
    num_threads: int | None = None,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
    expect: str | None = None,
    check_result: bool = True,
    progress: Callable[[int], None] | None = None,
) -> MergeReport:
    """Merge adapters into a checkpoint and write the result.

    The output has the layout of the base: one file for a file; for a folder, the same shards with
    the same headers, and its configuration and tokenizer files. Memory holds a few blocks of rows,
    not a model. The output path is absent (or, with `force`, what it was) until everything is
    written and on disk, whatever happens.

    Parameters
    ----------
    base : path or str
        A safetensors file, a Hugging Face folder or a Hub id, ``owner/name`` or
        ``owner/name@revision``, of which only what is needed is downloaded; opened read-only.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Several adapters are summed in fp32 and rounded once. For one output per adapter, see
        :func:`nola_edge.merge_each`.
    output : path
        Must not exist, unless `force`; must not lie inside an input.
    force : bool
        Replace an existing output.
    num_threads : int, optional
        Default: the processors this process may use. The bytes do not depend on it.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    rename : mapping from NEW to OLD, or iterable of "NEW=OLD", optional
        For a base that uses other names: where the name of an adapter's module contains NEW, as
        whole parts between dots, the base has OLD. The longest NEW is tried first, before the names
        that an adapter records itself. ``OLD[0:64]``: only these outputs of OLD.
    expect : str, optional
        SHA-256 of the result, as :func:`nola_edge.content_hash` gives it; any other is refused.
    check_result : bool
        Refuse another result than a packed adapter records for this base
        (:func:`nola_edge.expect_checkpoint`), where it is merged alone, with weight 1 and without
        `rename`.
    progress : callable, optional
        Called, from any thread, with the number of bytes written since the last call.

    Returns
    -------
    MergeReport

    Raises
    ------
    NolaEdgeError
        If an input is not what it claims, adapter and base do not fit, a merged weight is not
        finite, an input changes meanwhile, or the output cannot be written or is not the expected
        one; nothing is left.
    """
    check_threads(num_threads)
    sha256 = expected_hash(expect)
    output = arguments.path("output", output)
    arguments.path("base", base)
    begin = time.perf_counter()
    renames = Renames(rename)
    adapters = load_adapters(adapter)
    with Checkpoint.open(base_path(base)) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base, renames=renames)
        renames.check_used()
        wanted = expectation_of(plan, renames, sha256=sha256, check_result=check_result)
        merge = CheckpointMerge.of(plan, output, wanted)
        inputs = [checkpoint.path, *merge.adapter_paths]
        (expected_of,) = write_merges(
            checkpoint, [merge], inputs, force=force, num_threads=num_threads, progress=progress
        )
        return merge.report(time.perf_counter() - begin, check_base, expected_of)


def expectation_of(
    plan: MergePlan, renames: Renames | None, *, sha256: str | None = None, check_result: bool
) -> Expectation:
    """Return what is expected of the result of a plan."""
    return expectation(
        plan.adapters,
        FOLDER if plan.base.is_folder else ONE_FILE,
        lambda: base_fingerprint_of(plan),
        sha256=sha256,
        plainly=not renames,
        check_result=check_result,
    )


class CheckpointMerge(NamedTuple):
    """A merge that was checked and can be written.

    Attributes
    ----------
    plan : MergePlan
    output : Path
    files : tuple of OutputFile
        One for each weight file of the base.
    notes : tuple of str
        For the report.
    wanted : Expectation
        What the result must be.
    """

    plan: MergePlan
    output: Path
    files: tuple[OutputFile, ...]
    notes: tuple[str, ...]
    wanted: Expectation

    @classmethod
    def of(cls, plan: MergePlan, output: Path, wanted: Expectation) -> CheckpointMerge:
        """Lay out the files of a plan's result."""
        notes = [note for adapter, _ in plan.adapters for note in adapter.notes]
        notes = [*label_notes(plan), *notes, *wanted.notes]
        return cls(plan, output, tuple(output_files(plan)), tuple(notes), wanted)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.nbytes for file in self.files)

    @property
    def earlier(self) -> EarlierOutput:
        """What an earlier output of this merge is like."""
        return EarlierOutput.of(self.plan)

    @property
    def adapter_paths(self) -> list[Path]:
        """Where the adapters were loaded from; there is none for one made in memory."""
        return [Path(a.path) for a, _ in self.plan.adapters if a.path is not None]

    def report(self, seconds: float, check_base: bool, expected_of: str | None) -> MergeReport:
        """Say what was written."""
        plan = self.plan
        return MergeReport(
            output=self.output,
            tensors=len(plan.base.tensors) + len(plan.added),
            merged=len(plan.merged),
            replaced=len(plan.replaced),
            added=len(plan.added),
            nbytes=self.nbytes,
            seconds=seconds,
            carried_weights=tuple(str(path) for path in plan.base.companion_weights()),
            left_behind=tuple(str(path) for path in plan.base.left_behind()),
            notes=self.notes,
            base_checked=expected_of is not None
            or (check_base and all(a.base_fingerprint for a, _ in plan.adapters)),
            expected_of=expected_of,
        )


def write_merges(
    base: Checkpoint,
    merges: Sequence[CheckpointMerge],
    inputs: Sequence[Path],
    *,
    force: bool,
    num_threads: int | None,
    progress: Callable[[int], None] | None,
) -> list[str | None]:
    """Write merges of one base, which is read once, then put them in place one after the other.

    Parameters
    ----------
    base : Checkpoint
        That of every plan.
    merges : sequence of CheckpointMerge
        Each keeps a file descriptor open.
    inputs : sequence of Path
        What no output may touch.
    force, num_threads, progress
        As for :func:`merge_checkpoint`.

    Returns
    -------
    list of (str or None)
        For each, the name of the base of which its adapter expects just this result.

    Raises
    ------
    NolaEdgeError
        As for :func:`merge_checkpoint`. Until all are written nothing is in place; if one then
        cannot be put there, those before it stay, and are complete.
    """
    companions = base.companions()
    with contextlib.ExitStack() as stack:
        # Left in the reverse order, so that the first is the first in place.
        outputs = [
            stack.enter_context(
                AtomicOutput(
                    merge.output,
                    inputs=inputs,
                    force=force,
                    directory=base.is_folder,
                    expected_bytes=merge.nbytes,
                    replaces=merge.earlier.obstacle,
                )
            )
            for merge in reversed(merges)
        ][::-1]
        for number, source in enumerate(base.shards):
            files = []
            for merge, output in zip(merges, outputs, strict=True):
                content = merge.files[number]
                name = content.name if base.is_folder else ""
                files.append(WeightFile(merge.plan, content, output, name))
            write_together(source, files, num_threads, progress or (lambda _: None))
        if base.is_folder:
            for merge, output in zip(merges, outputs, strict=True):
                write_companions(merge.plan, companions, merge.files, output)
        base.check_unchanged()
        return [
            merge.wanted.check(output.path, output.target, num_threads)
            for merge, output in zip(merges, outputs, strict=True)
        ]
