"""Render a result of `benchmarks/deploy.py --save` as the table of benchmarks/README.md.

Usage: python benchmarks/table.py benchmarks/results/FILE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(record: dict) -> str:
    """Return Markdown; what falls short is said."""
    lines = ["| | against | measured | wanted | |", "|---|---|---|---|---|"]
    for figure in record["figures"]:
        word, sign = ("× faster", "≥") if figure["faster"] else ("×", "≤")
        ratio = f"{figure['ratio']:.3g}{word}"
        wanted = f"{sign} {figure['target']:g}×"
        note = figure["note"] if figure["reached"] else f"**falls short** {figure['note']}".strip()
        lines.append(f"| {figure['name']} | {figure['peer']} | {ratio} | {wanted} | {note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
