"""``nola-edge inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.inputs import (
    local_base,
    moe_layout_option,
    public_options,
    rename_option,
    revision_option,
)
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import summary_options

if TYPE_CHECKING:
    from nola_edge.adapters import Adapter, LowRankAdapter
    from nola_edge.adapters.nola_files import Coefficients
    from nola_edge.adapters.statistics import Pattern

    Shapes = dict[str, tuple[int, ...]]


@click.command("inspect", epilog="Example: nola-edge inspect ./my-adapter --base ./Llama-3-8B")
@click.argument("adapter", type=PATH)
@click.option(
    "--base", type=PATH, help="The checkpoint; adds shapes and the compression compared with LoRA."
)
@click.option("--modules", "list_modules", is_flag=True, help="List every module, also in JSON.")
@public_options
@moe_layout_option
@revision_option
@rename_option
@ui.check_base_option
@summary_options
def command(
    adapter: str,
    base: str | None,
    list_modules: bool,
    drawn_on: str | None,
    lora_alpha: float | None,
    moe_layout: str | None,
    revision: str | None,
    rename: tuple[str, ...],
    check_base: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what ADAPTER holds: modules, rank, coefficients and their distribution, bytes.

    The adapter is checked completely and, with --base, also against the base.
    """
    from nola_edge.adapters import Adapter, load_adapter
    from nola_edge.cli.inspection import show

    if revision is not None and base is None:
        raise click.UsageError("--revision is for a base on the Hub, and no --base was given")
    if rename and base is None:
        raise click.UsageError("--rename gives names in a base, and no --base was given")
    loaded = load_adapter(adapter, drawn_on=drawn_on, lora_alpha=lora_alpha, moe_layout=moe_layout)
    if base:
        base = local_base(base, revision)
    shapes = _shapes(loaded, base, rename, check_base=check_base) if base else None
    if not isinstance(loaded, Adapter):
        _show_other_method(adapter, loaded, shapes or {}, list_modules, as_json, quiet)
        return
    checked = set() if shapes is None else {"shapes", "base"} if check_base else {"shapes"}
    summary = _summary(loaded, shapes, {"basis", "modules", *checked})
    if list_modules:
        summary["largest"] = {name: _largest(c) for name, c in loaded.modules.items()}
    if as_json:
        ui.print_json(_as_json(summary))
    elif not quiet:
        show(adapter, summary)


def _show_other_method(
    given: str,
    adapter: LowRankAdapter,
    shapes: Shapes,
    list_modules: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from nola_edge.adapters.summary import summary
    from nola_edge.cli.inspection import show_other_method

    found = summary(adapter)
    for name, module in found["modules"].items():
        module["shape"] = module["shape"] or shapes.get(name)  # some methods do not record it
    if as_json:
        ui.print_json(found)
    elif not quiet:
        show_other_method(given, found, list_modules)


def _shapes(
    adapter: LowRankAdapter, base: str, rename: tuple[str, ...], *, check_base: bool
) -> Shapes:
    from nola_edge.adapters.renames import Renames
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.merge.plan import plan_merge

    with Checkpoint.open(base) as checkpoint:
        renames = Renames(rename)
        plan = plan_merge(checkpoint, ((adapter, 1.0),), check_base=check_base, renames=renames)
        renames.check_used()
        targets = {t.module: t.target for terms in plan.merges.values() for t in terms}
        return {
            module: target.features[::-1] if target.transposed else target.features
            for module, target in targets.items()
        }


def _summary(adapter: Adapter, shapes: Shapes | None, checked: set[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from nola_edge.adapters import statistics

    config = adapter.config
    whole = {name: tensor.shape for name, tensor in adapter.whole_tensors.tensors.items()}
    summary: dict[str, Any] = {
        "path": str(adapter.path),
        "packed": adapter.path is not None and adapter.path.is_file(),
        "bytes": _num_bytes(adapter.path or Path()),
        "base_model_name_or_path": config.bookkeeping.get("base_model_name_or_path"),
        "task_type": config.bookkeeping.get("task_type"),
        "fingerprints": {
            name: _state(getattr(config, f"{name}_fingerprint"), name in checked)
            for name in ("basis", "modules", "shapes", "base")
        },
        "modules": list(adapter.modules),
        "patterns": statistics.patterns(adapter.modules, shapes),
        "coefficients": adapter.num_coefficients,
        "whole_tensors": list(whole),
        "whole_patterns": statistics.patterns(whole, whole),
        "scaling": adapter.scaling,
        **{
            name: getattr(config, name)
            for name in ("r", "num_basis_a", "num_basis_b", "basis", "seed", "lora_alpha")
        },
        "coefficient_bits": config.coefficient_bits,
        "use_rslora": config.use_rslora,
        "beta_unit": config.beta_unit,
        "fan_in_fan_out": config.fan_in_fan_out,
        "base_fingerprint": config.base_fingerprint,
        "expected": [result._asdict() for result in adapter.expected],
        "config": config.to_json(),
        **{
            factor: asdict(statistics.Distribution.of(statistics.all_values(adapter, factor)))
            for factor in ("alpha", "beta")
        },
    }
    if shapes is not None:
        summary["shapes"] = shapes
        summary["compression"] = asdict(statistics.compression(adapter, shapes))
    return summary


def _num_bytes(path: Path) -> int:
    """Return the bytes of what makes the adapter, whatever else lies in its folder."""
    from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME

    files = [path] if path.is_file() else [path / CONFIG_NAME, path / WEIGHTS_NAME]
    return sum(file.stat().st_size for file in files)


def _state(fingerprint: str | None, checked: bool) -> str:
    return "missing" if fingerprint is None else "checked" if checked else "unchecked"


def _largest(coefficients: Coefficients) -> dict[str, float]:
    return {
        "alpha": float(abs(coefficients.alpha).max()),
        "beta": float(abs(coefficients.beta).max()),
    }


def _as_json(summary: dict[str, Any]) -> dict[str, Any]:
    def plain(pattern: Pattern) -> dict[str, Any]:
        shapes = [{"shape": shape, "count": count} for shape, count in pattern.shapes.items()]
        return {"name": pattern.name, "count": pattern.count, "shapes": shapes}

    fields = ("patterns", "whole_patterns")
    return {
        **summary,
        **{field: [plain(pattern) for pattern in summary[field]] for field in fields},
    }
