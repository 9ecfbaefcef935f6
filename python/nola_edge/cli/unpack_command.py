"""``nola-edge unpack``."""

from __future__ import annotations

import click

from nola_edge.cli import output as ui
from nola_edge.cli.output_names import check_folder_name
from nola_edge.cli.path_types import FILE, FOLDER
from nola_edge.cli.summary import bytes_at, left_out, show, summary_options
from nola_edge.errors import printable


@click.command("unpack", epilog="Example: nola-edge unpack my-adapter.nola -o ./my-adapter")
@click.argument("packed", type=FILE)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write.")
@ui.force_option
@summary_options
def command(packed: str, output: str, force: bool, as_json: bool, quiet: bool) -> None:
    """Turn a packed adapter into the folder that PEFT and other tools read."""
    from nola_edge.adapters import Adapter

    check_folder_name(output)
    loaded = Adapter.load(packed)
    ui.check_apart(loaded.path, output)
    loaded.save(output, force=force)
    show(
        {
            "output": output,
            "modules": len(loaded.modules),
            "coefficients": loaded.num_coefficients,
            "seed": loaded.config.seed,
            "bytes": bytes_at(output),
            "left_out": [result.name for result in loaded.expected],
        },
        f"{printable(output, 240)}: {len(loaded.modules)} modules, seed {loaded.config.seed}",
        *left_out(loaded.expected, "a folder has no place for them"),
        as_json=as_json,
        quiet=quiet,
    )
