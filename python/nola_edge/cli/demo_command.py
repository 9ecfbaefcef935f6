"""``nola-edge demo``."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from nola_edge.cli import output as ui


@click.command("demo", epilog="Example: nola-edge demo --keep ./nola-demo")
@click.option("--keep", help="Keep base, adapter and results in this new folder.")
@ui.json_option
def command(keep: str | None, as_json: bool) -> None:
    """Merge, verify and measure on weights made on the spot; nothing is downloaded.

    Takes a few seconds and about 700 MB of disk, in the temporary folder unless --keep is given.
    """
    from nola_edge.demo import run_demo
    from nola_edge.errors import OutputError

    def say(text: str) -> None:
        if not as_json:
            click.echo(f"… {text}")

    if keep is not None:
        try:
            Path(keep).mkdir()
        except FileExistsError:
            raise OutputError("exists already; choose another name", file=keep) from None
        result = run_demo(Path(keep), say)
    else:
        with tempfile.TemporaryDirectory(prefix="nola-edge-demo-") as folder:
            result = run_demo(Path(folder), say)
    if as_json:
        ui.print_json(asdict(result))
        return
    click.echo()
    click.echo(
        f"base     {ui.human_bytes(result.base_bytes)} of bf16 weights\n"
        f"adapter  {ui.human_bytes(result.adapter_bytes)}: {result.coefficients:,} coefficients "
        f"for {result.modules} modules, and a seed"
    )
    click.echo(f"\n{'':16} {'time':>9} {'peak memory':>14}   result")
    verdict = "bit for bit what verify expects" if result.identical else "NOT AS EXPECTED"
    plain = f"other bits in {result.differing} tensors (rounds twice)"
    for label, numbers, text in (
        ("nola-edge", result.ours, verdict),
        ("the plain way", result.plain, plain),
    ):
        click.echo(
            f"{label:16} {numbers['seconds']:7.2f} s "
            f"{ui.human_bytes(numbers['peak_bytes']):>14}   {text}"
        )
    if keep is not None:
        click.echo(f"\nkept in {keep}: base, adapter, merged, plain")
