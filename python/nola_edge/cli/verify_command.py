"""``nola-edge verify``."""

from __future__ import annotations

import math
import os

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable

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
@ui.any_base_option
@ui.threads_option
@ui.json_option
def command(
    merged: str,
    base: str,
    adapters: tuple[str, ...],
    any_base: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Say whether MERGED, checkpoint or GGUF file, is bit for bit what base and adapter give.

    Every tensor is merged again and compared; files may be sharded differently. Exit status 0: the
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

            report = verify_gguf(merged, base, given, num_threads=threads, progress=progress)
        else:
            from nola_edge.merge.verify import verify_checkpoint

            report = verify_checkpoint(
                merged,
                base,
                given,
                num_threads=threads,
                check_base=not any_base,
                progress=progress,
            )
    if as_json:
        ui.print_json(
            {
                "identical": report.identical,
                "tensors": report.tensors,
                "merged": report.merged,
                "bytes": report.nbytes,
                "differences": [
                    {
                        "tensor": d.tensor,
                        "problem": d.problem,
                        "detail": d.detail,
                        "elements": d.elements,
                        # NaN and Infinity are no JSON numbers.
                        "largest": d.largest if math.isfinite(d.largest) else None,
                    }
                    for d in report.differences
                ],
            }
        )
    elif report.identical:
        click.echo(
            f"identical: {report.tensors} tensors ({report.merged} merged), "
            f"{ui.human_bytes(report.nbytes)}, every bit as base and adapter give"
        )
    else:
        click.echo(f"DIFFERENT: {len(report.differences)} tensors")
        for difference in report.differences[:_LISTED]:
            click.echo(f"  {printable(difference.tensor)}: {difference.detail}")
        if len(report.differences) > _LISTED:
            click.echo(f"  … and {len(report.differences) - _LISTED} more (all with --json)")
    return 0 if report.identical else 1


def _size(path: str, gguf: bool) -> int:
    from nola_edge.checkpoint import Checkpoint

    if gguf:
        return os.path.getsize(path)
    with Checkpoint.open(path) as checkpoint:
        return checkpoint.nbytes
