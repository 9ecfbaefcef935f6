"""``nola-edge pack``."""

from __future__ import annotations

from pathlib import Path

import click

from nola_edge.cli import output as ui
from nola_edge.cli.output_names import check_file_name
from nola_edge.cli.path_types import FILE, PATH
from nola_edge.cli.summary import show, summary_options
from nola_edge.errors import printable


@click.command("pack", epilog="Example: nola-edge pack ./my-adapter -o my-adapter.nola")
@click.argument("adapter", type=PATH)
@click.option(
    "-o", "--output", type=FILE, required=True, help="File to write, with the suffix .nola."
)
@ui.force_option
@summary_options
def command(adapter: str, output: str, force: bool, as_json: bool, quiet: bool) -> None:
    """Write ADAPTER as one small file, for shipping.

    Every command that takes an adapter folder also takes this file. For an even smaller file with
    fewer bits per coefficient, use nola-edge quantize. To get a folder for PEFT again, use
    nola-edge unpack.
    """
    from nola_edge.adapters import Adapter

    check_file_name(output, ".nola", name=adapter)
    loaded = Adapter.load(adapter)
    ui.check_apart(loaded.path, output)
    loaded.pack(output, force=force)
    size = Path(output).stat().st_size
    each = size / loaded.num_coefficients
    show(
        {
            "output": output,
            "modules": len(loaded.modules),
            "coefficients": loaded.num_coefficients,
            "bytes": size,
        },
        f"{printable(output, 240)}: {loaded.num_coefficients:,} coefficients for "
        f"{len(loaded.modules)} modules, {ui.human_bytes(size)}, {each:.2f} bytes each in total",
        as_json=as_json,
        quiet=quiet,
    )
