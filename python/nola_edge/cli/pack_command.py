"""``nola-edge pack``."""

from __future__ import annotations

from pathlib import Path

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable


@click.command("pack", epilog="Example: nola-edge pack ./my-adapter -o my-adapter.nola")
@click.argument("adapter")
@click.option("-o", "--output", required=True, help="File to write.")
@ui.force_option
def command(adapter: str, output: str, force: bool) -> None:
    """Write ADAPTER as one small file, for shipping.

    Every command takes the file where it takes an adapter folder. Quantize first for the smallest
    one; unpack gives PEFT its folder back.
    """
    from nola_edge.adapter import Adapter

    loaded = Adapter.load(adapter)
    ui.check_apart(loaded.path, output)
    loaded.pack(output, force=force)
    size = Path(output).stat().st_size
    each = size / loaded.num_coefficients
    click.echo(
        f"{printable(output, 240)}: {loaded.num_coefficients:,} coefficients for "
        f"{len(loaded.modules)} modules, {ui.human_bytes(size)}, {each:.2f} bytes each all told"
    )
