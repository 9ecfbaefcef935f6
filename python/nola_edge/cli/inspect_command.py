"""``nola-edge inspect``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.inputs import local_base, revision_option
from nola_edge.cli.path_types import PATH
from nola_edge.errors import printable

if TYPE_CHECKING:
    from nola_edge.adapter import Adapter


@click.command("inspect", epilog="Example: nola-edge inspect ./my-adapter --base ./Llama-3-8B")
@click.argument("adapter", type=PATH)
@click.option(
    "--base", type=PATH, help="The checkpoint; adds shapes and the compression against LoRA."
)
@click.option("--modules", "list_modules", is_flag=True, help="List every module.")
@revision_option
@ui.check_base_option
@ui.json_option
def command(
    adapter: str,
    base: str | None,
    list_modules: bool,
    revision: str | None,
    check_base: bool,
    as_json: bool,
) -> None:
    """Show what ADAPTER holds: modules, rank, coefficients and their distribution, bytes.

    The adapter is checked completely, with --base against the base too.
    """
    from nola_edge.adapter import Adapter

    loaded = Adapter.load(adapter)
    if base:
        base = local_base(base, revision)
    shapes = _shapes(loaded, base, check_base=check_base) if base else None
    summary = _summary(loaded, shapes)
    if as_json:
        ui.print_json(summary)
        return
    _print_summary(loaded, summary)
    if list_modules:
        _print_modules(loaded, shapes)


def _shapes(adapter: Adapter, base: str, *, check_base: bool) -> dict[str, tuple[int, ...]]:
    from nola_edge.checkpoint import Checkpoint
    from nola_edge.merge.plan import plan_merge

    with Checkpoint.open(base) as checkpoint:
        plan = plan_merge(checkpoint, ((adapter, 1.0),), check_base=check_base)
        return {terms[0].module: plan.tensor(name)[1].shape for name, terms in plan.merges.items()}


def _summary(adapter: Adapter, shapes: dict[str, tuple[int, ...]] | None) -> dict[str, Any]:
    from dataclasses import asdict

    from nola_edge.adapter.statistics import Distribution, all_values, compression

    config = adapter.config
    folder = adapter.path or Path()
    summary: dict[str, Any] = {
        "path": str(folder),
        "bytes": sum(file.stat().st_size for file in _files(folder)),
        "modules": list(adapter.modules),
        "coefficients": adapter.num_coefficients,
        "whole_tensors": list(adapter.whole_tensors),
        "scaling": adapter.scaling,
        **{
            name: getattr(config, name)
            for name in ("r", "num_basis_a", "num_basis_b", "basis", "seed", "lora_alpha")
        },
        "coefficient_bits": config.coefficient_bits,
        "use_rslora": config.use_rslora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "base_fingerprint": config.base_fingerprint,
        "alpha": asdict(Distribution.of(all_values(adapter, "alpha"))),
        "beta": asdict(Distribution.of(all_values(adapter, "beta"))),
    }
    if shapes is not None:
        summary["compression"] = asdict(compression(adapter, shapes))
    return summary


def _print_summary(adapter: Adapter, summary: dict[str, Any]) -> None:
    from nola_edge.adapter.statistics import Distribution

    config = adapter.config
    rule = "lora_alpha / sqrt(r)" if config.use_rslora else "lora_alpha / r"
    rows = [
        ("adapter", f"{summary['path']} ({ui.human_bytes(summary['bytes'])})"),
        ("modules", f"{len(adapter.modules)}: {_kinds(list(adapter.modules))}"),
        (
            "factors",
            f"rank {config.r}, {config.num_basis_a} + {config.num_basis_b} coefficients each, "
            f"{config.basis} basis, seed {config.seed}",
        ),
        ("scaling", f"{summary['scaling']:g} = {rule}"),
        (
            "coefficients",
            f"{summary['coefficients']:,} ({_stored_size(summary)})",
        ),
    ]
    if adapter.whole_tensors:
        rows.append(("whole tensors", ", ".join(map(printable, adapter.whole_tensors))))
    for factor in ("alpha", "beta"):
        d = Distribution(**summary[factor])
        rows.append(
            (
                factor,
                f"{d.low:+.3g} {d.picture()} {d.high:+.3g}   mean {d.mean:.2g}, std {d.std:.2g}, "
                f"{d.zeros} zeros",
            )
        )
    for label, value in rows:
        click.echo(f"{label:13} {value}")
    _print_compression(summary)


def _files(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]


def _stored_size(summary: dict[str, Any]) -> str:
    bits = summary["coefficient_bits"]
    if bits is None:
        return f"{ui.human_bytes(4 * summary['coefficients'])} as F32"
    return f"{ui.human_bytes(summary['coefficients'] * bits / 8)} in {bits} bits"


def _print_compression(summary: dict[str, Any]) -> None:
    if "compression" not in summary:
        click.echo(f"{'compression':13} give --base to compare with LoRA and full fine-tuning")
        return
    numbers = summary["compression"]
    own = numbers["coefficients"]
    for label, other in (("LoRA r = 1", numbers["lora_r1"]), ("full delta", numbers["full"])):
        click.echo(f"{'compression':13} {other / own:,.1f}x fewer numbers than {label} ({other:,})")


def _kinds(modules: list[str]) -> str:
    """Group module names that differ in a layer number."""
    groups: dict[str, int] = {}
    for module in modules:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", module)
        groups[pattern] = groups.get(pattern, 0) + 1
    return ", ".join(f"{printable(name)} ({count})" for name, count in groups.items())


def _print_modules(adapter: Adapter, shapes: dict[str, tuple[int, ...]] | None) -> None:
    for module, coefficients in adapter.modules.items():
        shape = f" {shapes[module][0]} x {shapes[module][1]}" if shapes else ""
        click.echo(
            f"  {printable(module)}{shape}: |alpha| {abs(coefficients.alpha).max():.3g}, "
            f"|beta| {abs(coefficients.beta).max():.3g} at most"
        )
