"""Make tables and plots of what `quality.py run` measured.

python benchmarks/quality_report.py benchmarks/results/quality.jsonl --plot quality.png
python benchmarks/quality_report.py benchmarks/results/smollm2.jsonl --real-plot smollm2.png
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quality import PATH, TASKS, read

#: Measure -> (factor for the table, decimals).
SHOWN = {
    "bleu": (1, 1),
    "loss": (1, 3),
    "accuracy": (100, 1),
    "bytes": (1, 0),
    "cpu_seconds_a_step": (1, 2),
    "peak_mb": (1, 0),
}

#: What the plot says: its one sentence, its panels' names, a colour for each kind of method.
TITLE = "A quarter of LoRA r = 1's parameters: level or better on three tasks of four"
PANELS = {
    "decoder-llama": "LLaMA-style decoder",
    "decoder-gpt2": "GPT-2-style decoder",
    "encoder": "MiniLM encoder",
    "vision": "Vision transformer",
}
REAL_TITLE = "SmolLM2-135M on E2E, 100 steps: level with LoRA r = 1 down to an eighth of its size"
REAL_COSTS = {"parameters": "trained parameters", "bytes": "bytes on disk"}
COLOURS = {"full": "#555555", "LoRA": "#d55e00", "NOLA": "#0072b2"}


@dataclass(frozen=True)
class Row:
    """A method on a task, over seeds."""

    method: str
    parameters: int
    runs: int
    #: Measure -> (mean, deviation)
    values: dict[str, tuple[float, float]]


def summary(records: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """Return the rows of each task in the order of the methods."""
    import methods

    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["task"], record["method"]].append(record)
    table: dict[str, list[Row]] = defaultdict(list)
    for task, settings in TASKS.items():
        for name in methods.METHODS:
            runs = found.get((task, name), [])
            if runs:
                shown = (*settings.measures, *settings.costs)
                values = {m: _mean_and_deviation([r[m] for r in runs]) for m in shown}
                table[task].append(Row(name, runs[0]["parameters"], len(runs), values))
    return table


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(task: str, rows: list[Row]) -> list[str]:
    """Return the lines of a table in Markdown: mean and deviation of measures, means of costs."""
    measures, costs = TASKS[task].measures, TASKS[task].costs
    names = [*measures, *(cost.replace("_", " ") for cost in costs)]
    lines = [f"| {task} | trained parameters | {' | '.join(names)} | seeds |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for row in rows:
        cells = [f"{shown(row, m, 0)} ± {shown(row, m, 1)}" for m in measures]
        cells += [shown(row, cost, 0) for cost in costs]
        lines.append(f"| {row.method} | {row.parameters:,} | {' | '.join(cells)} | {row.runs} |")
    return lines


def shown(row: Row, measure: str, which: int) -> str:
    """Return a mean (0) or a deviation (1) as the table has it."""
    factor, decimals = SHOWN[measure]
    return f"{factor * row.values[measure][which]:,.{decimals}f}"


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option("--plot", type=PATH, help="Draw the small tasks' quality against parameters.")
@click.option("--real-plot", type=PATH, help="Draw the real model's loss against its costs.")
def main(results: Path, plot: Path | None, real_plot: Path | None) -> None:
    """Print tables in Markdown, mean and deviation over seeds."""
    tables = summary(read(results))
    for task, rows in tables.items():
        click.echo("\n".join(["", *table(task, rows)]))
    if plot is not None:
        draw(tables, plot)
    if real_plot is not None:
        draw_real(tables["smollm2"], real_plot)


def draw_real(rows: list[Row], path: Path) -> None:
    """Draw the loss on the real model over trained parameters and over bytes on disk."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.4, 4.4), sharey=True, layout="constrained")
    figure.suptitle(REAL_TITLE, fontsize=12, fontweight="bold")
    for axis, cost in zip(axes, ("parameters", "bytes"), strict=True):
        for row in rows:
            x = row.parameters if cost == "parameters" else row.values[cost][0]
            draw_real_row(axis, row, x)
        axis.set(xscale="log", xlabel=REAL_COSTS[cost])
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.margins(x=0.2, y=0.12)
        axis.set_xlim(right=axis.get_xlim()[1] * 3)  # for the last name
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test loss, nats a token")
    figure.savefig(path, dpi=170)


def draw_real_row(axis: Any, row: Row, x: float) -> None:
    """Draw one method at a cost, with its name beside the point."""
    kind = row.method.partition(" ")[0]
    mean, deviation = row.values["loss"]
    colour = COLOURS.get(kind, COLOURS["full"])
    is_aligned = "aligned" in row.method
    marker = "o" if is_aligned else "s"
    axis.errorbar(x, mean, yerr=deviation, fmt=marker, color=colour, capsize=2, markersize=6)
    name = row.method.replace(", aligned", " (aligned)")
    axis.annotate(
        name, (x, mean), xytext=(6, 5 if is_aligned else -10),
        textcoords="offset points", fontsize=8.5, color=colour,
    )  # fmt: skip


def draw(tables: dict[str, list[Row]], path: Path) -> None:
    """Draw one panel for each task: quality over trained parameters, on a logarithmic axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.2, 6.6), layout="constrained")
    figure.suptitle(TITLE, fontsize=12, fontweight="bold")
    for axis, (task, rows) in zip(axes.flat, tables.items(), strict=True):
        measure = TASKS[task].measures[0]
        for row in rows:
            if "," not in row.method:  # variants are for the table
                draw_row(axis, row, SHOWN[measure][0], measure)
        unit = {"bleu": "BLEU", "accuracy": "right answers, %"}[measure]
        axis.set(xscale="log", title=f"{PANELS[task]}: {unit}")
        axis.margins(x=0.2, y=0.12)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("trained parameters")
    labels = ["NOLA, a part of LoRA r = 1's parameters", "LoRA", "full fine-tuning"]
    marks = [
        mpl.lines.Line2D([], [], marker="o", color=COLOURS[kind], linestyle="", label=label)
        for kind, label in zip(("NOLA", "LoRA", "full"), labels, strict=True)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.savefig(path, dpi=170)


def draw_row(axis: Any, row: Row, factor: int, measure: str) -> None:
    """Draw one method, with its name beside the point."""
    kind, _, size = row.method.partition(" ")
    mean, deviation = (factor * value for value in row.values[measure])
    axis.errorbar(
        row.parameters, mean, yerr=deviation, fmt="o", color=COLOURS[kind], capsize=2, markersize=7
    )
    if kind != "full":  # NOLA's names below the bars, LoRA's above: the points lie close together
        below = kind == "NOLA"
        axis.annotate(
            size, (row.parameters, mean - deviation if below else mean + deviation),
            xytext=(0, -4 if below else 4), textcoords="offset points", fontsize=10,
            color=COLOURS[kind], ha="center", va="top" if below else "bottom",
        )  # fmt: skip


if __name__ == "__main__":
    main()
