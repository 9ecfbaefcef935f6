"""Write what the sweep found as ``docs/architectures.md``.

python -m tests.sweep.table benchmarks/results/2026-11-architectures.jsonl docs/architectures.md
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_INTRODUCTION = """# Architectures of transformers

Written by `python -m tests.sweep.table` from what `python -m tests.sweep.run` found with
transformers 5.23, PEFT 0.21.2 and torch 2.13.

For each model type that transformers knows: a tiny model with random weights, saved by transformers
and loaded again; a NOLA adapter and a LoRA over all its linear layers, made with PEFT; the files
merged by nola-edge, and verified; the model in memory merged (NOLA: PEFT's `merge_and_unload`;
LoRA: `nola_edge.torch.merge_`, which is within rounding of PEFT's) and saved by transformers.
*Right* is every bit of every tensor.
"""
_PLAIN = "Right, with names as in the model:"
_RENAMED = (
    "Right, though files have other names than the model, or hold several layers in one tensor.\n"
    "NOLA adapters record that; a LoRA wants `--rename`, or `rename=stored_tensors(model)`:"
)
_NOT_MADE = (
    "Not checked: no tiny model could be made of their configuration, packages are missing, or\n"
    "PEFT adapts none of their layers:"
)


def table(rows: Iterable[Row]) -> str:
    """Return the page."""
    found = sorted(rows, key=lambda row: str(row["architecture"]).lower())
    made = [row for row in found if {row.get("NOLA"), row.get("LoRA")} - {None, "not made"}]
    counts = [
        f"| {method} | {_count(made, method, 'right')} | {_count(made, method, 'refused')} | "
        f"{_count(made, method, 'wrong')} | {_count(made, method, 'not made')} |"
        for method in ("NOLA", "LoRA")
    ]
    head = "| | right | refused | wrong | PEFT makes none |\n|---|---|---|---|---|\n"
    refused = [row for row in made if "refused" in (row.get("NOLA"), row.get("LoRA"))]
    parts = [
        _INTRODUCTION,
        head + "\n".join(counts) + "\n",
        _named(_PLAIN, made, _is_plain),
        _named(_RENAMED, made, lambda row: row.get("LoRA") == "right with rename"),
        _reasons("Refused", refused),
        _named(_NOT_MADE, found, lambda row: row not in made),
    ]
    return "\n".join(part for part in parts if part)


def _count(rows: Iterable[Row], method: str, result: str) -> int:
    return sum(str(row.get(method)).removesuffix(" with rename") == result for row in rows)


def _is_plain(row: Row) -> bool:
    return {row.get("NOLA"), row.get("LoRA")} <= {"right", "not made", None}


def _named(title: str, rows: Iterable[Row], is_one: Callable[[Row], bool]) -> str:
    names = ", ".join(f"`{row['architecture']}`" for row in rows if is_one(row))
    lines = textwrap.wrap(names, 100, break_long_words=False, break_on_hyphens=False)
    return f"{title}\n\n" + "\n".join(lines) + "\n" if names else ""


def _reasons(title: str, rows: list[Row]) -> str:
    lines = [
        f"| `{row['architecture']}` | {method} | {row[f'{method}_reason'].replace('|', '/')} |"
        for row in rows
        for method in ("NOLA", "LoRA")
        if row.get(method) == "refused"
    ]
    head = f"{title}:\n\n| architecture | adapter | reason |\n|---|---|---|\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def main() -> None:
    """Run from the command line."""
    results, output = map(Path, sys.argv[1:])
    output.write_text(table(map(json.loads, results.read_text().splitlines())))


if __name__ == "__main__":
    main()
