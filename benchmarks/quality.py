"""Compare NOLA with LoRA and full fine-tuning on the examples' tasks, over several seeds.

    python benchmarks/quality.py tune --data E2E_FOLDER --out rates.jsonl
    python benchmarks/quality.py run --data E2E_FOLDER --out benchmarks/results/quality.jsonl
    python benchmarks/quality.py report benchmarks/results/quality.jsonl --plot quality.png

`tune` tries learning rates for each kind of method on the validation part, with a seed that `run`
does not use; the examples' `RATES` hold what it chose. For the real model (`--task smollm2`) it
tries them for every method, and `run --rates rates.jsonl` gives each its own best one. Both append
one line for each run and pass over what is there, so they can be stopped and resumed, and started
several times with other tasks, or shares of one.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "training"))

PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Task:
    """What is measured on a task.

    Attributes
    ----------
    measures : tuple of str
        The first one is drawn.
    judge : str
        The measure that chooses learning rates.
    steps : int
    methods : tuple of str
        The groups of methods that run.
    rates : dict
        Kind of method -> learning rates that `tune` tries.
    """

    measures: tuple[str, ...]
    judge: str
    steps: int
    methods: tuple[str, ...]
    rates: Mapping[str, tuple[float, ...]]


#: Learning rates that `tune` tries for the adapters of the small tasks.
ADAPTER_RATES = {"lora": (3e-3, 1e-2, 3e-2), "nola": (3e-3, 1e-2, 3e-2)}
SMALL = {"full": (3e-4, 1e-3, 3e-3), **ADAPTER_RATES}
REAL = {
    "lora": (2.5e-3, 5e-3, 1e-2, 2e-2),
    "nola": (1.25e-3, 2.5e-3, 5e-3, 1e-2),
    "other": (5e-3, 1e-2, 2e-2, 4e-2),
}
TASKS = {
    "decoder-llama": Task(("bleu", "loss"), "loss", 250, ("MAIN", "VARIANTS"), SMALL),
    "decoder-gpt2": Task(("bleu", "loss"), "loss", 250, ("MAIN",), SMALL),
    "encoder": Task(
        ("accuracy",), "accuracy", 120, ("MAIN",), {**SMALL, "full": (3e-5, 1e-4, 3e-4)}
    ),
    "vision": Task(("accuracy",), "accuracy", 200, ("MAIN", "VARIANTS"), SMALL),
    "smollm2": Task(("loss", "bleu"), "loss", 100, ("REAL",), REAL),
}
#: Measure -> (factor for the table, decimals).
SHOWN = {"bleu": (1, 1), "loss": (1, 3), "accuracy": (100, 1)}

#: What the plot says: its one sentence, its panels' names, a colour for each kind of method.
TITLE = "A quarter of LoRA r = 1's parameters: level or better on three tasks of four"
PANELS = {
    "decoder-llama": "LLaMA-style decoder",
    "decoder-gpt2": "GPT-2-style decoder",
    "encoder": "MiniLM encoder",
    "vision": "Vision transformer",
}
COLOURS = {"full": "#555555", "LoRA": "#d55e00", "NOLA": "#0072b2"}

#: What `tune` tries on the small tasks, for all of a kind; on the real model, every method.
TUNED = ("full fine-tuning", "LoRA r = 1", "NOLA 1/4")
TUNING_SEED = 100


def run_once(
    task: str, name: str, seed: int, data: Path, cache: Path, **options: Any
) -> dict[str, Any]:
    """Run one method on one task."""
    import decoder
    import encoder
    import methods
    import vision

    method, steps = methods.METHODS[name], options.pop("steps", TASKS[task].steps)
    if task == "smollm2":
        import smollm2

        return smollm2.run(data, cache, method, seed, steps, **options)
    if task == "encoder":
        return encoder.run(data, method, seed, steps, **options)
    if task == "vision":
        return vision.run(cache, method, seed, steps, **options)
    arch = task.removeprefix("decoder-")
    return decoder.run(data, cache, arch, method, seed, steps, **options)


def record_all(
    cases: list[dict[str, Any]], data: Path, cache: Path, out: Path, threads: int
) -> None:
    """Run the cases that a file does not hold yet and append what they gave.

    Each has a process of its own, whose peak memory is then that of the case.
    """
    spawned = multiprocessing.get_context("spawn")
    for case in cases:
        done = read(out) if out.exists() else []
        if any(case.items() <= record.items() for record in done):
            continue
        with ProcessPoolExecutor(1, mp_context=spawned) as process:
            record = process.submit(measured, case, data, cache, threads).result()
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        click.echo(json.dumps(record))


def measured(case: dict[str, Any], data: Path, cache: Path, threads: int) -> dict[str, Any]:
    """Return a case with what it gave."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    options = {name: value for name, value in case.items() if name in ("rate", "part", "steps")}
    result = run_once(case["task"], case["method"], case["seed"], data, cache, **options)
    return {**case, **result}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def common_options(command: Any) -> Any:
    """Add the options of `tune` and `run`."""
    for option in reversed(
        [
            click.option("--data", required=True, type=PATH, help="Folder of the E2E files."),
            click.option("--out", required=True, type=PATH, help="Lines of JSON, appended to."),
            click.option("--cache", default="quality-cache", type=PATH, show_default=True),
            click.option(
                "--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Repeatable."
            ),
            click.option(
                "--method", "names", multiple=True, help="Repeatable.  [default: the task's]"
            ),
            click.option("--steps", type=int, help="Of training.  [default: the task's]"),
            click.option("--threads", default=0, help="Of torch.  [default: torch's]"),
            click.option(
                "--share",
                default="1/1",
                show_default=True,
                help="1/2 and 2/2: two processes at once, which do one half of the runs each.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Compare methods of fine-tuning."""


def shared(cases: list[dict[str, Any]], share: str, steps: int | None) -> list[dict[str, Any]]:
    """Return one process's part of the cases, with their number of steps if it is another."""
    number, count = map(int, share.split("/"))
    return [case | ({"steps": steps} if steps else {}) for case in cases[number - 1 :: count]]


def methods_of(task: str, names: tuple[str, ...]) -> list[Any]:
    """Return the methods that run on a task, or those of them that are wanted."""
    import methods

    found = [method for group in TASKS[task].methods for method in getattr(methods, group)]
    return [method for method in found if not names or method.name in names]


def best_rates(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (task, method) -> the run of `tune` that did best."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        key, judge = (record["task"], record["method"]), TASKS[record["task"]].judge
        sign = 1 if judge == "loss" else -1
        if key not in best or sign * record[judge] < sign * best[key][judge]:
            best[key] = record
    return best


@main.command()
@common_options
@click.option(
    "--rate", "rates", multiple=True, type=float, help="Repeatable.  [default: the task's]"
)
def tune(
    data: Path, out: Path, cache: Path, tasks: tuple[str, ...], names: tuple[str, ...],
    steps: int | None, threads: int, share: str, rates: tuple[float, ...],
) -> None:  # fmt: skip
    """Try learning rates on the validation part and print the best ones."""
    cases = [
        {"task": t, "method": m.name, "seed": TUNING_SEED, "rate": rate, "part": "validation"}
        for t in tasks or TASKS
        for m in methods_of(t, names or (() if t == "smollm2" else TUNED))
        for rate in rates or TASKS[t].rates[m.kind]
    ]
    record_all(shared(cases, share, steps), data, cache, out, threads)
    for (task, method), best in best_rates(read(out)).items():
        judge = TASKS[task].judge
        click.echo(f"{task}: {method} at {best['rate']:g}, {judge} {best[judge]:.4f}")


@main.command()
@common_options
@click.option("--seeds", default=3, show_default=True)
@click.option("--rates", type=PATH, help="What `tune` wrote.  [default: the examples' rates]")
def run(
    data: Path, out: Path, cache: Path, tasks: tuple[str, ...], names: tuple[str, ...],
    steps: int | None, threads: int, share: str, seeds: int, rates: Path | None,
) -> None:  # fmt: skip
    """Run every method on every task for every seed and measure on the test part."""
    best = best_rates(read(rates)) if rates else {}
    cases = [
        {"task": task, "method": method.name, "seed": seed}
        | ({"rate": best[task, method.name]["rate"]} if (task, method.name) in best else {})
        for seed in range(seeds)
        for task in tasks or TASKS
        for method in methods_of(task, names)
    ]
    record_all(shared(cases, share, steps), data, cache, out, threads)


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
                values = {m: _mean_and_deviation([r[m] for r in runs]) for m in settings.measures}
                table[task].append(Row(name, runs[0]["parameters"], len(runs), values))
    return table


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@main.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option("--plot", "plot_path", type=PATH, help="Draw quality against parameters.")
def report(results: Path, plot_path: Path | None) -> None:
    """Print a table in Markdown, mean and deviation over seeds."""
    tables = summary(read(results))
    for task, rows in tables.items():
        measures = TASKS[task].measures
        click.echo(f"\n| {task} | trained parameters | {' | '.join(measures)} | seeds |")
        click.echo("|---|---|" + "---|" * len(measures) + "---|")
        for row in rows:
            cells = []
            for measure in measures:
                factor, decimals = SHOWN[measure]
                mean, deviation = (factor * v for v in row.values[measure])
                cells.append(f"{mean:.{decimals}f} ± {deviation:.{decimals}f}")
            click.echo(f"| {row.method} | {row.parameters:,} | {' | '.join(cells)} | {row.runs} |")
    if plot_path is not None:
        draw(tables, plot_path)


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
