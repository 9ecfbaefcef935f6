"""``nola-edge unpack``."""

from __future__ import annotations

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable


@click.command("unpack", epilog="Example: nola-edge unpack my-adapter.nola -o ./my-adapter")
@click.argument("packed")
@click.option("-o", "--output", required=True, help="Folder to write.")
@ui.force_option
def command(packed: str, output: str, force: bool) -> None:
    """Turn a packed adapter into the folder that PEFT and other tools read."""
    from nola_edge.adapter import Adapter

    loaded = Adapter.load(packed)
    ui.check_apart(loaded.path, output)
    loaded.save(output, force=force)
    click.echo(
        f"{printable(output, 240)}: {len(loaded.modules)} modules, seed {loaded.config.seed}"
    )
