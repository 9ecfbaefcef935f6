"""What ``nola-edge inspect`` prints, of the summary that ``--json`` prints whole."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from nola_edge.adapters.statistics import ASCII_LEVELS, BLOCKS, Distribution, patterns
from nola_edge.adapters.summary import rows
from nola_edge.cli import layout
from nola_edge.cli.layout import whole
from nola_edge.cli.output import human_bytes
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nola_edge.adapters.statistics import Pattern

    Row = tuple[str, str]

_LABEL = 14
_LISTED = 20


def show(given: str, summary: dict[str, Any]) -> None:
    """Print a summary, in the terminal's width and signs.

    Parameters
    ----------
    given : str
        The adapter, as the user names it.
    summary : dict
        With every module where it has ``"largest"``.
    """
    columns = layout.width()
    levels = BLOCKS if layout.has(BLOCKS) else ASCII_LEVELS
    lines = [
        *_rows(_identity(given, summary), columns),
        *_table(_patterns(summary["patterns"]), columns),
        *_rows(_contents(summary, levels), columns),
        *_table(_patterns(summary["whole_patterns"]), columns),
        *_rows([("compression", _compression(summary))], columns),
    ]
    if "largest" in summary:
        lines += ["", *_table(_modules(summary), columns, most=None)]
    click.echo("\n".join(lines))


def show_other_method(given: str, found: dict[str, Any], list_modules: bool) -> None:
    """Print what can be said of an adapter of any method.

    Parameters
    ----------
    given : str
        The adapter, as the user names it.
    found : dict
        What :func:`nola_edge.adapters.summary.summary` found.
    list_modules : bool
        Every module too.
    """
    columns = layout.width()
    modules = found["modules"]
    known = {name: tuple(m["shape"]) for name, m in modules.items() if m["shape"]}
    shapes = known if len(known) == len(modules) else None
    identity = [
        ("adapter", f"{printable(given, 400)} ({human_bytes(found['bytes'])})"),
        ("modules", str(len(modules))),
    ]
    lines = [
        *_rows(identity, columns),
        *_table(_patterns(patterns(modules, shapes)), columns),
        *_rows([(label, printable(text, 500)) for label, text in rows(found)], columns),
    ]
    if list_modules:
        said = ((printable(name), _factors(m)) for name, m in modules.items())
        lines += ["", *_table(said, columns, most=None)]
    click.echo("\n".join(lines))


def _factors(module: dict[str, Any]) -> str:
    shape = f"{' x '.join(map(str, module['shape']))}: " if module["shape"] else ""
    return f"{shape}rank {module['rank']}, scaling {module['scaling']:g}"


def _rows(labelled: Iterable[Row], columns: int) -> Iterator[str]:
    for label, value in labelled:
        for number, line in enumerate(_wrapped(value, columns - _LABEL)):
            yield f"{label * (number == 0):{_LABEL}}{line}"


def _wrapped(value: str, columns: int) -> list[str]:
    return [line for text in value.split("\n") for line in layout.wrap(text, columns)]


def _table(rows: Iterable[Row], columns: int, most: int | None = _LISTED) -> Iterator[str]:
    """Lay out names and what is said of each; a name that leaves no room has a line of its own."""
    rows = iter(rows)
    shown = list(islice(rows, most))
    said = max((len(text) for _, text in shown), default=0)
    room = columns - 4 - said
    column = max((len(name) for name, _ in shown if len(name) <= room), default=0)
    for name, text in shown:
        if len(name) <= column:
            yield f"  {name:{column}}  {text}"
        else:
            yield from (f"  {line}" for line in layout.wrap(name, columns - 2))
            yield from (f"      {line}" for line in layout.wrap(text, columns - 6))
    more = sum(1 for _ in rows)
    if more:
        yield f"  and {more} more: --json has all"


def _identity(given: str, summary: dict[str, Any]) -> Iterator[Row]:
    packed = ", packed" * summary["packed"]
    yield "adapter", f"{printable(given, 400)} ({human_bytes(summary['bytes'])}{packed})"
    for label, field in (("base", "base_model_name_or_path"), ("task", "task_type")):
        yield label, printable(summary[field] or "not recorded", 400)
    yield "fingerprints", _fingerprints(summary["fingerprints"])
    if summary["expected"]:
        yield "expects", _expected(summary["expected"])
    count, kinds = len(summary["modules"]), len(summary["patterns"])
    yield "modules", f"{count}" + f" in {kinds} patterns" * (1 < kinds < count)


def _fingerprints(states: dict[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, state in states.items():
        groups.setdefault(state, []).append(name)
    said = {
        "checked": "checked",
        "unchecked": "not checked without --base",
        "missing": "not recorded",
    }
    return "; ".join(whole(f"{said[state]}: {', '.join(names)}") for state, names in groups.items())


def _expected(results: list[dict[str, Any]]) -> str:
    named = (f"{printable(result['name'], 240)} ({result['kind']})" for result in results)
    return f"known results of merging into {', '.join(map(whole, named))}"


def _patterns(patterns: list[Pattern]) -> Iterator[Row]:
    for pattern in patterns:
        shapes = [
            f"{count} x ({' x '.join(map(str, shape))})" for shape, count in pattern.shapes.items()
        ]
        yield printable(pattern.name, 240), ", ".join(shapes) or str(pattern.count)


def _contents(summary: dict[str, Any], levels: str) -> Iterator[Row]:
    a, b = summary["num_basis_a"], summary["num_basis_b"]
    yield (
        "factors",
        f"rank {summary['r']}, {a} + {b} coefficients each, {summary['basis']} basis, "
        + whole(f"seed {summary['seed']}"),
    )
    rule = "lora_alpha / sqrt(r)" if summary["use_rslora"] else "lora_alpha / r"
    unit = "" if summary["beta_unit"] == 1 else f" x beta_unit {summary['beta_unit']:g}"
    yield "scaling", f"{summary['scaling']:g} = {rule}{unit}"
    if summary["fan_in_fan_out"]:
        yield "weights", "stored as (in, out): fan_in_fan_out"
    yield "coefficients", f"{summary['coefficients']:,} ({_stored_size(summary)})"
    for factor in ("alpha", "beta"):
        yield factor, _distribution(Distribution(**summary[factor]), levels)
    if summary["whole_tensors"]:
        yield "whole tensors", f"{len(summary['whole_tensors'])}"


def _stored_size(summary: dict[str, Any]) -> str:
    bits = summary["coefficient_bits"]
    if bits is None:
        return f"{human_bytes(4 * summary['coefficients'])} as F32"
    return f"{human_bytes(summary['coefficients'] * bits / 8)} in {bits} bits"


def _distribution(d: Distribution, levels: str) -> str:
    zeros = {0: "no zeros", 1: "1 zero"}.get(d.zeros, f"{d.zeros:,} zeros")
    picture = f"{d.low:+.3g} {d.picture(levels)} {d.high:+.3g}"
    numbers = f"mean {d.mean:.2g}, std {d.std:.2g}, {zeros}"
    return f"{whole(picture)}  {whole(numbers)}"


def _compression(summary: dict[str, Any]) -> str:
    if "compression" not in summary:
        return "give --base to compare with LoRA and full fine-tuning"
    numbers = summary["compression"]
    others = {"LoRA r = 1": "lora_r1", "LoRA r = 16": "lora_r16", "the full difference": "full"}
    ratios = [numbers[field] / numbers["coefficients"] for field in others.values()]
    return "\n".join(
        whole(f"{_times(ratio)} numbers than") + " " + whole(f"{what} ({numbers[field]:,})")
        for ratio, (what, field) in zip(ratios, others.items(), strict=True)
    )


def _times(ratio: float) -> str:
    return f"{_ratio(ratio)} fewer" if ratio >= 1 else f"{_ratio(1 / ratio)} more"


def _ratio(value: float) -> str:
    return f"{value:,.1f}x" if value < 100 else f"{value:,.0f}x"


def _modules(summary: dict[str, Any]) -> Iterator[Row]:
    for module, largest in summary["largest"].items():
        shape = summary.get("shapes", {}).get(module)
        size = f"{' x '.join(map(str, shape))}, " if shape else ""
        said = f"{size}|alpha| {largest['alpha']:.3g}, |beta| {largest['beta']:.3g} at most"
        yield printable(module, 240), said
