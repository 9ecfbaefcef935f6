"""``nola-edge verify``."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable

if TYPE_CHECKING:
    from nola_edge.merge.compare import VerifyReport

_LISTED = 20


@click.command(
    "verify",
    epilog="Example: nola-edge verify ./merged --base ./Llama-3-8B --adapter ./my-adapter",
)
@click.argument("merged")
@click.option("--base", required=True, help="The checkpoint that was merged into.")
@click.option(
    "--adapter", "adapters", multiple=True, required=True, help=ui.ADAPTER_HELP + "; repeatable."
)
@click.option(
    "--tensors-only",
    is_flag=True,
    help="Compare nothing but tensors, as in a checkpoint that another program wrote.",
)
@ui.any_base_option
@ui.threads_option
@ui.json_option
def command(
    merged: str,
    base: str,
    adapters: tuple[str, ...],
    tensors_only: bool,
    any_base: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Say whether MERGED, checkpoint or GGUF file, is bit for bit what base and adapter give.

    Every tensor is merged again and compared, and so are all other bytes that merge writes:
    headers and metadata, index, configuration, tokenizer, weights of other parts. Hidden files
    are not looked at. With --tensors-only, files may be sharded differently. Exit status 0: the
    same, 1: different, with a list of what differs.
    """
    from nola_edge.gguf.file import is_gguf

    gguf = is_gguf(base)
    if gguf != is_gguf(merged):
        which, other = ("--base", "MERGED") if gguf else ("MERGED", "--base")
        raise click.UsageError(f"{which} is a GGUF file and {other} is none; give two of a kind")
    given = [ui.parse_adapter(text) for text in adapters]
    with ui.ByteProgress(_size(merged, gguf), "verifying") as progress:
        if gguf:
            from nola_edge.gguf import verify_gguf

            report = verify_gguf(
                merged,
                base,
                given,
                num_threads=threads,
                tensors_only=tensors_only,
                progress=progress,
            )
        else:
            from nola_edge.merge.verify import verify_checkpoint

            report = verify_checkpoint(
                merged,
                base,
                given,
                num_threads=threads,
                check_base=not any_base,
                tensors_only=tensors_only,
                progress=progress,
            )
    if as_json:
        ui.print_json(_as_json(report))
    elif report.identical:
        rest = "; nothing else was compared" if tensors_only else ""
        click.echo(
            f"identical: {report.tensors} tensors ({report.merged} merged), "
            f"{ui.human_bytes(report.nbytes)}, every bit as base and adapter give{rest}"
        )
    else:
        _print_differences(report)
    return 0 if report.identical else 1


def _as_json(report: VerifyReport) -> dict[str, Any]:
    found = asdict(report)
    for difference in found["differences"]:
        # NaN and Infinity are no JSON numbers.
        if not math.isfinite(difference["largest"]):
            difference["largest"] = None
    found["bytes"] = found.pop("nbytes")
    return {"identical": report.identical, **found}


def _print_differences(report: VerifyReport) -> None:
    tensors = [(d.tensor, d.detail) for d in report.differences]
    files = [(d.file, d.detail) for d in report.files]
    counts = [
        f"{len(found)} {what}{'s' * (len(found) > 1)}"
        for found, what in ((tensors, "tensor"), (files, "file"))
        if found
    ]
    click.echo(f"DIFFERENT: {' and '.join(counts)}")
    for name, detail in [*tensors[:_LISTED], *files[:_LISTED]]:
        click.echo(f"  {printable(name)}: {detail}")
    more = sum(max(0, len(found) - _LISTED) for found in (tensors, files))
    if more:
        click.echo(f"  … and {more} more (all with --json)")


def _size(path: str, gguf: bool) -> int:
    from nola_edge.checkpoint import Checkpoint

    if gguf:
        return os.path.getsize(path)
    with Checkpoint.open(path) as checkpoint:
        return checkpoint.nbytes
