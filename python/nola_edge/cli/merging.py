"""The three kinds of merge behind ``nola-edge merge``, with progress and a summary."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from nola_edge.cli import output as ui
from nola_edge.cli.inputs import GGUF_NOTE
from nola_edge.cli.layout import say, whole
from nola_edge.cli.summary import as_found
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nola_edge.cli.inputs import Given
    from nola_edge.gguf.merge import GgufReport
    from nola_edge.gguf.survival import Survival
    from nola_edge.merge.write import MergeReport


_LISTED = 20
_WORST = 3


def merge_into_one(
    base: str, adapters: Given, output: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Merge into a checkpoint."""
    from nola_edge.merge.write import merge_checkpoint

    with ui.Progress(_nbytes(base), "merging", quiet) as progress:
        report = merge_checkpoint(base, adapters, output, progress=progress, **options)
    if as_json:
        ui.print_json(as_found(report))
    elif not quiet:
        _print_output(report, _speed(report.nbytes, report.seconds), "")
        _print_notes([report], options["check_base"])


def merge_into_each(
    base: str, adapters: Given, output: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Merge every adapter into a checkpoint of its own."""
    from nola_edge.merge.many.each import merge_each
    from nola_edge.merge.many.process_share import Share

    begin = time.perf_counter()
    shard = options["shard"]
    share = Share.of(shard)
    count = len(share.take(adapters))
    with ui.Progress(_nbytes(base) * count, "merging", quiet) as progress:
        reports = merge_each(base, adapters, output, progress=progress, **options)
    seconds = time.perf_counter() - begin
    if as_json:
        ui.print_json([as_found(report) for report in reports])
        return
    if quiet:
        return
    label = printable(output, 240) + (f" (shard {share})" if shard is not None else "")
    skipped = f", {count - len(reports)} existed already" if len(reports) < count else ""
    if not reports:
        why = skipped or f", {len(adapters)} adapters for {share.count} processes"
        say(f"{label}: nothing to do{why}")
        return
    nbytes = sum(report.nbytes for report in reports)
    outputs = f"{len(reports)} output{'s' * (len(reports) > 1)}{skipped}"
    say(f"{label}: {outputs}, {_speed(nbytes, seconds)}")
    for report in reports[:_LISTED]:
        _print_output(report, ui.human_bytes(report.nbytes), "  ")
    if len(reports) > _LISTED:
        say(f"  … and {len(reports) - _LISTED} more (all with --json)")
    _print_notes(reports, options["check_base"])


def _nbytes(base: str) -> int:
    """Return the bytes of a checkpoint; nothing of it stays in memory."""
    from nola_edge.files.checkpoint import Checkpoint

    with Checkpoint.open(base) as checkpoint:
        return checkpoint.nbytes


def _speed(nbytes: int, seconds: float) -> str:
    rate = ui.human_bytes(nbytes / seconds)
    return f"{ui.human_bytes(nbytes)} in {seconds:.2f} s {whole(f'({rate}/s)')}"


def _print_output(report: MergeReport, size: str, indent: str) -> None:
    say(
        f"{indent}{printable(report.output, 240)}: {report.merged} of {report.tensors} tensors "
        f"merged, {size}"
    )
    if report.replaced or report.added:
        say(f"{indent}  whole tensors: {report.replaced} replaced, {report.added} added")
    _print_expected(report, indent)
    for note in report.notes:
        say(f"{indent}  note: {printable(note, 400)}")


def _print_expected(report: MergeReport | GgufReport, indent: str) -> None:
    if report.expected_of is not None:
        name = printable(report.expected_of, 240)
        say(f"{indent}  the result is the one that the adapter expects of {name}")


def _print_notes(reports: Sequence[MergeReport], check_base: bool) -> None:
    """Say what holds for all outputs, for the base is the same."""
    for what, names in (
        ("copied unchanged", reports[0].carried_weights),
        ("not copied", reports[0].left_behind),
    ):
        if names:
            say(f"  {what}: {printable(', '.join(names), 500)}")
    unchecked = sum(not report.base_checked for report in reports)
    if unchecked and not check_base:
        say("  the base was not checked: --no-check-base")
    elif unchecked:
        whose = f"{unchecked} adapter{'s record' if unchecked > 1 else ' records'}"
        whose = "the adapter records" if len(reports) == 1 else whose
        say(f"  the base was not checked: {whose} no fingerprint of it")


def merge_gguf_file(
    base: str, adapters: Given, output: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Merge into a GGUF file."""
    from nola_edge.gguf import merge_gguf

    with ui.Progress(os.path.getsize(base), "merging", quiet) as progress:
        report = merge_gguf(base, adapters, output, progress=progress, **options)
    is_expected = report.expected_of is not None
    notes = [*[GGUF_NOTE] * (not is_expected), *report.notes]
    if as_json:
        found = {**as_found(report), "base_checked": is_expected, "notes": notes}
        found["survival"] = {name: _as_found(kept) for name, kept in report.survival.items()}
        found["survival_overall"] = _as_found(report.overall)
        ui.print_json(found)
    elif not quiet:
        say(
            f"{printable(report.output, 240)}: {report.merged} of {report.tensors} tensors "
            f"merged, {_speed(report.nbytes, report.seconds)}"
        )
        if report.survival:
            _print_survival(report)
        _print_expected(report, "")
        if not is_expected:
            say(f"  {GGUF_NOTE}")
        for note in report.notes:
            say(f"  note: {printable(note, 400)}")
    _warn_of_loss(report)


def _as_found(survival: Survival) -> dict[str, float | None]:
    return {"part": survival.part, "noise": survival.noise}


def _print_survival(report: GgufReport) -> None:
    overall = report.overall
    if overall.part is None:
        say("  the adapter changes nothing, so quantisation cannot lose anything")
        return
    parts = sorted(
        (kept.part, name) for name, kept in report.survival.items() if kept.part is not None
    )
    least = ", ".join(f"{printable(name)} {part:.0%}" for part, name in parts[:_WORST])
    alike = len({f"{part:.0%}" for part, _ in parts}) == 1
    say(
        f"  {overall.part:.0%} of the adapter's change survives quantisation in {len(parts)} "
        f"tensors, beside noise of {overall.noise:.2f} times its size"
        + ("" if alike else f"; least in {least}")
    )


def _warn_of_loss(report: GgufReport) -> None:
    """Warn on stderr, however little is said on stdout."""
    from nola_edge.gguf.survival import LITTLE

    part = report.overall.part
    if part is not None and part < LITTLE:
        say(
            f"warning: only {part:.0%} of the adapter's change survives quantisation. "
            f"{_advice(report)}",
            err=True,
        )


def _advice(report: GgufReport) -> str:
    """Say what keeps more than what was done."""
    from nola_edge.gguf.quantization import NEAREST

    finer = "f16" if "Q8_0" in report.types else "q8_0 or f16"
    ways = [
        *["round with --rounding amplified"] * (report.rounding == NEAREST),
        f"give merged tensors a finer type (--outtype {finer})",
        "load the adapter beside the base (nola-edge export gguf-lora)",
    ]
    return f"To keep more, {', '.join(ways[:-1])}, or {ways[-1]}"
