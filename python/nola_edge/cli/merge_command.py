"""``nola-edge merge``."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable


@click.command(
    "merge",
    epilog="Example: nola-edge merge ./Llama-3-8B ./my-adapter -o ./merged",
)
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("-o", "--output", required=True, help="File or folder to write.")
@ui.force_option
@ui.any_base_option
@ui.threads_option
@ui.json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
def command(
    base: str,
    adapters: tuple[str, ...],
    output: str,
    force: bool,
    any_base: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge one ADAPTER or several into BASE and write the result.

    BASE is a safetensors file or a Hugging Face folder; the output has its layout. An ADAPTER is a
    folder or a Hub id; with several, each may have a weight: ADAPTER=0.5. They are summed in fp32
    and rounded once. The output is absent or complete at every instant.
    """
    from nola_edge.checkpoint import Checkpoint
    from nola_edge.merge.write import merge_checkpoint

    with Checkpoint.open(base) as checkpoint:
        total = checkpoint.nbytes
    with ui.ByteProgress(total, "merging", quiet) as progress:
        report = merge_checkpoint(
            base,
            [ui.parse_adapter(text) for text in adapters],
            output,
            force=force,
            num_threads=threads,
            check_base=not any_base,
            progress=progress,
        )
    if as_json:
        ui.print_json(asdict(report))
    elif not quiet:
        rate = ui.human_bytes(report.nbytes / report.seconds)
        click.echo(
            f"{printable(report.output, 240)}: {report.merged} of {report.tensors} tensors merged, "
            f"{ui.human_bytes(report.nbytes)} in {report.seconds:.2f} s ({rate}/s)"
        )
        if report.replaced or report.added:
            click.echo(f"  whole tensors: {report.replaced} replaced, {report.added} added")
        if report.left_behind:
            names = printable(", ".join(report.left_behind), 500)
            click.echo(f"  not carried over (not merged): {names}")
        if not report.base_checked:
            click.echo("  the base was not checked: the adapter records no fingerprint of it")
