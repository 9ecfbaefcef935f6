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
    from collections.abc import Iterator

    from nola_edge.merge.compare import VerifyReport

_LISTED = 20


@click.command(
    "verify",
    epilog="Example: nola-edge verify ./merged ./Llama-3-8B ./my-adapter",
)
@click.argument("merged", type=PATH)
@click.argument("base", type=PATH)
@click.argument("adapters", type=PATH, nargs=-1, required=True, metavar="ADAPTER...")
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
    tensors_only: bool,
    dtype: str | None,
    revision: str | None,
    check_base: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Say whether MERGED, checkpoint or GGUF file, is bit for bit what merge writes.

    Takes what merge takes: after "merge BASE ADAPTER -o MERGED" it is "verify MERGED BASE ADAPTER".
    Every tensor is merged again and compared, and so are all other bytes that merge writes:
    headers and metadata, index, configuration, tokenizer, weights of other parts. Hidden files
    are not looked at. With --tensors-only, files may be sharded differently. Exit status 0: the
    same, 1: different, with a list of what differs.
    """
    from nola_edge.gguf.file import is_gguf

    given = local_adapters(adapters)
    base = local_base(base, revision)
    gguf = is_gguf(base)
    if gguf != is_gguf(merged):
        which, other = ("BASE", "MERGED") if gguf else ("MERGED", "BASE")
        raise click.UsageError(f"{which} is a GGUF file and {other} is none; give two of a kind")
    check_type_fits(dtype, gguf)
    common: dict[str, Any] = {"num_threads": threads, "tensors_only": tensors_only}
    with ui.ByteProgress(_size(merged, gguf), "verifying", quiet) as progress:
        if gguf:
            from nola_edge.gguf import verify_gguf

            report = verify_gguf(merged, base, given, outtype=dtype, progress=progress, **common)
        else:
            from nola_edge.merge.verify import verify_checkpoint

            report = verify_checkpoint(
                merged, base, given, check_base=check_base, progress=progress, **common
            )
    lines = [_sameness(report, tensors_only)] if report.identical else _differences(report)
    show(_as_found(report), *lines, as_json=as_json, quiet=quiet)
    return 0 if report.identical else 1


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


def _size(path: str, gguf: bool) -> int:
    from nola_edge.checkpoint import Checkpoint

    if gguf:
        return os.path.getsize(path)
    with Checkpoint.open(path) as checkpoint:
        return checkpoint.nbytes
