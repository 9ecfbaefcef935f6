"""Compare NOLA with LoRA and full fine-tuning on the examples' tasks, over several seeds.

    python benchmarks/quality.py run --data E2E_FOLDER --out benchmarks/results/quality.jsonl
    python benchmarks/quality.py report benchmarks/results/quality.jsonl --plot quality.png

`run` appends one line for each run and passes over what is there, so it can be stopped and resumed
(and started several times, with other tasks).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "training"))

PATH = click.Path(path_type=Path)

#: Task -> (the measure that counts, whether more is better, steps, whether variants run too).
TASKS = {
    "decoder-llama": ("bleu", True, 250, True),
    "decoder-gpt2": ("bleu", True, 250, False),
    "encoder": ("accuracy", True, 120, False),
    "vision": ("accuracy", True, 200, True),
}


def run_once(task: str, name: str, seed: int, data: Path, cache: Path) -> dict[str, Any]:
    """Run one method on one task."""
    import decoder
    import encoder
    import methods
    import vision

    method, steps = methods.METHODS[name], TASKS[task][2]
    if task == "encoder":
        return encoder.run(data, method, seed, steps)
    if task == "vision":
        return vision.run(cache, method, seed, steps)
    return decoder.run(data, cache, task.removeprefix("decoder-"), method, seed, steps)


@click.group()
def main() -> None:
    """Compare methods of fine-tuning."""


@main.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--out", required=True, type=PATH)
@click.option("--cache", default="quality-cache", type=PATH, show_default=True)
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Repeatable.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--threads", default=0, help="Of torch.  [default: torch's]")
def run(
    data: Path, out: Path, cache: Path, tasks: tuple[str, ...], seeds: int, threads: int
) -> None:
    """Run every method on every task for every seed."""
    import methods
    import torch

    if threads:
        torch.set_num_threads(threads)
    done = {(r["task"], r["method"], r["seed"]) for r in read(out)} if out.exists() else set()
    for seed in range(seeds):
        for task in tasks or TASKS:
            for method in [*methods.MAIN, *(methods.VARIANTS if TASKS[task][3] else [])]:
                if (task, method.name, seed) in done:
                    continue
                begin = time.time()
                result = run_once(task, method.name, seed, data, cache)
                record = {"task": task, "method": method.name, "seed": seed, **result}
                record["seconds"] = round(time.time() - begin, 1)
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                click.echo(json.dumps(record))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(records: list[dict[str, Any]]) -> dict[str, list[tuple[str, int, float, float, int]]]:
    """Return task -> (method, parameters, mean, deviation, runs) in the order of the methods."""
    import methods

    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["task"], record["method"]].append(record)
    table: dict[str, list[tuple[str, int, float, float, int]]] = defaultdict(list)
    for task, (measure, *_) in TASKS.items():
        for name in methods.METHODS:
            runs = found.get((task, name), [])
            if runs:
                values = [r[measure] for r in runs]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                row = (name, runs[0]["parameters"], statistics.mean(values), deviation, len(runs))
                table[task].append(row)
    return table


@main.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option("--plot", "plot_path", type=PATH, help="Draw quality against parameters.")
def report(results: Path, plot_path: Path | None) -> None:
    """Print a table in Markdown, mean and deviation over seeds."""
    tables = summary(read(results))
    for task, rows in tables.items():
        measure = TASKS[task][0]
        scale = 100 if measure == "accuracy" else 1
        click.echo(f"\n| {task} | trained parameters | {measure} | seeds |\n|---|---|---|---|")
        for name, parameters, mean, deviation, count in rows:
            value = f"{scale * mean:.1f} ± {scale * deviation:.1f}"
            click.echo(f"| {name} | {parameters:,} | {value} | {count} |")
    if plot_path is not None:
        draw(tables, plot_path)


def draw(tables: dict[str, list[tuple[str, int, float, float, int]]], path: Path) -> None:
    """Draw one panel for each task: quality over trained parameters, on a logarithmic axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"full": "#555555", "LoRA": "#d55e00", "NOLA": "#0072b2"}
    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.8), squeeze=False)
    for axis, (task, rows) in zip(axes[0], tables.items(), strict=True):
        for name, parameters, mean, deviation, _ in rows:
            plain = "," not in name
            colour = colours[name.split()[0]]
            axis.errorbar(
                parameters, mean, yerr=deviation, fmt="o" if plain else "x", color=colour,
                alpha=1 if plain else 0.45, capsize=2, markersize=6 if plain else 5,
            )  # fmt: skip
            if plain:
                axis.annotate(
                    name, (parameters, mean), xytext=(5, 5), textcoords="offset points", fontsize=7
                )
        axis.set(xscale="log", xlabel="trained parameters", ylabel=TASKS[task][0], title=task)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
