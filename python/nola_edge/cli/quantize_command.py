"""``nola-edge quantize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nola_edge.cli import output as ui
from nola_edge.cli.output_names import check_folder_name
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import bytes_at, left_out, show, summary_options
from nola_edge.errors import printable

if TYPE_CHECKING:
    from nola_edge.adapters import Adapter

_PACKED = ".nola"


@click.command(
    "quantize",
    epilog="\b\nExample: nola-edge quantize ./my-adapter -o my-adapter.nola\n"
    "Example: nola-edge quantize ./my-adapter --bits 4 -o ./small",
)
@click.argument("adapter", type=PATH)
@click.option(
    "--bits",
    type=click.Choice(["3", "4", "8"]),
    default="8",
    show_default=True,
    help="Bits per coefficient; the first of each module's A stays exact.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Folder or, with the suffix .nola, packed file to write.",
)
@ui.force_option
@summary_options
def command(adapter: str, bits: str, output: str, force: bool, as_json: bool, quiet: bool) -> None:
    """Store the coefficients of ADAPTER in fewer bits, rounded after training.

    Every reader of adapters understands the result and merges the same bits from it. To ship it,
    write a single file: -o my-adapter.nola. To train with rounded coefficients instead, set
    coefficient_bits in NolaConfig.
    """
    from nola_edge.adapters import Adapter

    packed = output.endswith(_PACKED)
    if not packed:
        check_folder_name(output, f"the output is a folder or, with the suffix {_PACKED}, a file")
    loaded = Adapter.load(adapter)
    ui.check_apart(loaded.path, output)
    rounded = loaded.quantize(int(bits))
    (rounded.pack if packed else rounded.save)(output, force=force)
    size = bytes_at(output)
    errors = {factor: _relative_error(loaded, rounded, factor) for factor in ("alpha", "beta")}
    show(
        {
            "output": output,
            "bits": int(bits),
            "coefficients": rounded.num_coefficients,
            "bytes": size,
            "relative_error": errors,
            "left_out": [result.name for result in loaded.expected],
        },
        f"{printable(output, 240)}: {rounded.num_coefficients:,} coefficients of {bits} bits, "
        f"{ui.human_bytes(size)}; relative error alpha {errors['alpha']:.2%}, "
        f"beta {errors['beta']:.2%}",
        *left_out(loaded.expected, "they are of the adapter as it was"),
        as_json=as_json,
        quiet=quiet,
    )


def _relative_error(before: Adapter, after: Adapter, factor: str) -> float:
    """Return the norm of what rounding changed over the norm of all coefficients."""
    from nola_edge.adapters.statistics import all_values

    old, new = (all_values(adapter, factor).astype("f8") for adapter in (before, after))
    norm = float((old**2).sum())
    return (float(((new - old) ** 2).sum()) / norm) ** 0.5 if norm else 0.0
