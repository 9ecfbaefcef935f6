"""``nola-edge quantize``."""

from __future__ import annotations

from pathlib import Path

import click

from nola_edge.cli import output as ui
from nola_edge.errors import printable


@click.command("quantize", epilog="Example: nola-edge quantize ./my-adapter --bits 4 -o ./small")
@click.argument("adapter")
@click.option(
    "--bits",
    type=click.Choice(["3", "4", "8"]),
    default="8",
    show_default=True,
    help="Of each coefficient, with one fp32 scale for each module's A and B.",
)
@click.option("-o", "--output", required=True, help="Folder to write.")
@ui.force_option
@ui.json_option
def command(adapter: str, bits: str, output: str, force: bool, as_json: bool) -> None:
    """Store the coefficients of ADAPTER in fewer bits, rounded after training.

    Every reader understands the result and merges the same bits from it. To train with rounded
    coefficients instead, set coefficient_bits in NolaConfig.
    """
    from nola_edge.adapter import Adapter
    from nola_edge.adapter.statistics import all_values

    loaded = Adapter.load(adapter)
    ui.check_apart(loaded.path, output)
    rounded = loaded.quantize(int(bits))
    rounded.save(output, force=force)
    errors = {}
    for factor in ("alpha", "beta"):
        before, after = (all_values(a, factor).astype("f8") for a in (loaded, rounded))
        norm = float((before**2).sum())
        errors[factor] = (float(((after - before) ** 2).sum()) / norm) ** 0.5 if norm else 0.0
    size = sum(file.stat().st_size for file in Path(output).iterdir())
    if as_json:
        ui.print_json({"path": output, "bits": int(bits), "bytes": size, "error": errors})
        return
    click.echo(
        f"{printable(output, 240)}: {rounded.num_coefficients:,} coefficients of {bits} bits, "
        f"{ui.human_bytes(size)}; relative error alpha {errors['alpha']:.2%}, "
        f"beta {errors['beta']:.2%}"
    )
    click.echo(f"for shipping, one file: nola-edge pack {output} -o {Path(output).name}.nola")
