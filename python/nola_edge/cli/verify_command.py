"""``nola-edge verify``."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.inputs import local_adapters, local_base, revision_option
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import as_found, show, summary_options
from nola_edge.cli.types import GGUF_TYPES, check_type_fits, type_option
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nola_edge.merge.report import VerifyReport

_LISTED = 20


@click.command(
    "verify",
    epilog="\b\nExample: nola-edge verify ./merged ./Llama-3-8B ./my-adapter\n"
    "Example: nola-edge verify ./merged ./Llama-3-8B adapters/* --each",
)
@click.argument("merged", type=PATH)
@click.argument("base", type=PATH)
@click.argument("adapters", type=PATH, nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "--each", is_flag=True, help="MERGED is what merge --each wrote, with an output per ADAPTER."
)
@click.option(
    "--tensors-only",
    is_flag=True,
    help="Compare nothing but tensors, as in a checkpoint that another program wrote.",
)
@type_option(GGUF_TYPES, help="Type of merged tensors in a GGUF file.  [default: as in MERGED]")
@revision_option
@ui.check_base_option
@ui.threads_option
@summary_options
def command(
    merged: str,
    base: str,
    adapters: tuple[str, ...],
    each: bool,
    dtype: str | None,
    revision: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Say whether MERGED, checkpoint or GGUF file, is bit for bit what merge writes.

    Takes what merge takes: after "merge BASE ADAPTER -o MERGED" it is "verify MERGED BASE ADAPTER".
    Every tensor is merged again and compared, and so are all other bytes that merge writes:
    headers and metadata, index, configuration, tokenizer, weights of other parts. Hidden files
    are not looked at. With --tensors-only, files may be sharded differently. Exit status 0: the
    same, 1: different, with a list of what differs.
    """
    from nola_edge.gguf.signature import is_gguf

    given = local_adapters(adapters)
    base = local_base(base, revision)
    gguf = is_gguf(base)
    check_type_fits(dtype, gguf)
    outputs = _outputs(merged, base, given) if each else {merged: given}
    found, lines = [], []
    for output, terms in outputs.items():
        if gguf:
            report = _verify_gguf(output, base, terms, dtype, quiet, **options)
        else:
            report = _verify_checkpoint(output, base, terms, quiet, **options)
        found.append({"output": output, **_as_found(report)})
        label = f"{printable(output, 240)}: " if each else ""
        lines += [label + line for line in _lines(report, options["tensors_only"])]
    show(found if each else found[0], *lines, as_json=as_json, quiet=quiet)
    return 0 if all(one["identical"] for one in found) else 1


def _outputs(
    merged: str, base: str, adapters: Sequence[tuple[str, float]]
) -> dict[str, list[tuple[str, float]]]:
    """Return the path of each adapter's output, as merge --each names it."""
    from nola_edge.merge.names import name_outputs

    suffix = "" if os.path.isdir(base) else ".safetensors"
    named = name_outputs(adapters).items()
    return {os.path.join(merged, name + suffix): given for name, given in named}


def _verify_checkpoint(
    merged: str, base: str, adapters: Any, quiet: bool, *, threads: int | None, **options: Any
) -> VerifyReport:
    from nola_edge.checkpoint import Checkpoint
    from nola_edge.gguf.signature import is_gguf
    from nola_edge.merge.verify import verify_checkpoint

    if is_gguf(merged):
        raise click.UsageError("MERGED is a GGUF file and BASE is none; give two of a kind")
    with Checkpoint.open(merged) as checkpoint:
        nbytes = checkpoint.nbytes
    with ui.ByteProgress(nbytes, "verifying", quiet) as progress:
        return verify_checkpoint(
            merged, base, adapters, num_threads=threads, progress=progress, **options
        )


def _verify_gguf(
    merged: str,
    base: str,
    adapters: Any,
    dtype: str | None,
    quiet: bool,
    *,
    threads: int | None,
    tensors_only: bool,
    check_base: bool,
) -> VerifyReport:
    from nola_edge.gguf import verify_gguf
    from nola_edge.gguf.signature import is_gguf

    if not is_gguf(merged):
        raise click.UsageError("BASE is a GGUF file and MERGED is none; give two of a kind")
    with ui.ByteProgress(os.path.getsize(merged), "verifying", quiet) as progress:
        return verify_gguf(
            merged,
            base,
            adapters,
            outtype=dtype,
            num_threads=threads,
            tensors_only=tensors_only,
            progress=progress,
        )


def _lines(report: VerifyReport, tensors_only: bool) -> Iterable[str]:
    return [_sameness(report, tensors_only)] if report.identical else _differences(report)


def _sameness(report: VerifyReport, tensors_only: bool) -> str:
    rest = "; nothing else was compared" if tensors_only else ""
    return (
        f"identical: {report.tensors} tensors ({report.merged} merged), "
        f"{ui.human_bytes(report.nbytes)}, every bit as base and adapter give{rest}"
    )


def _as_found(report: VerifyReport) -> dict[str, Any]:
    found = as_found(report)
    for difference in found["differences"]:
        # NaN and Infinity are no JSON numbers.
        if not math.isfinite(difference["largest"]):
            difference["largest"] = None
    return {"identical": report.identical, **found}


def _differences(report: VerifyReport) -> Iterator[str]:
    tensors = [(d.tensor, d.detail) for d in report.differences]
    files = [(d.file, d.detail) for d in report.files]
    counts = [
        f"{len(found)} {what}{'s' * (len(found) > 1)}"
        for found, what in ((tensors, "tensor"), (files, "file"))
        if found
    ]
    yield f"DIFFERENT: {' and '.join(counts)}"
    for name, detail in [*tensors[:_LISTED], *files[:_LISTED]]:
        yield f"  {printable(name)}: {detail}"
    more = sum(max(0, len(found) - _LISTED) for found in (tensors, files))
    if more:
        yield f"  … and {more} more (all with --json)"
