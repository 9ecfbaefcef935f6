"""Compare NOLA with LoRA and full fine-tuning on the examples' tasks, over several seeds.

    python benchmarks/quality.py tune --data E2E_FOLDER --out rates.jsonl
    python benchmarks/quality.py run --data E2E_FOLDER --out benchmarks/results/quality.jsonl
    python benchmarks/quality_report.py benchmarks/results/quality.jsonl --plot quality.png

`tune` tries learning rates for each kind of method on the validation part, with a seed that `run`
does not use; the examples' `RATES` hold what it chose. For the real model (`--task smollm2`) it
tries them for every method, and `run --rates rates.jsonl` gives each its own best one. Both append
one line for each run and pass over what is there, so they can be stopped and resumed, and started
several times with other tasks, or shares of one.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
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
    costs : tuple of str
        What else the table shows, as means.
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
    costs: tuple[str, ...] = ()


#: Learning rates that `tune` tries for the adapters of the small tasks.
ADAPTER_RATES = {"lora": (3e-3, 1e-2, 3e-2), "nola": (3e-3, 1e-2, 3e-2)}
SMALL = {"full": (3e-4, 1e-3, 3e-3), **ADAPTER_RATES}
REAL = {
    "lora": (2.5e-3, 5e-3, 1e-2, 2e-2),
    "nola": (6.25e-4, 1.25e-3, 2.5e-3, 5e-3),
    "other": (5e-3, 1e-2, 2e-2, 4e-2),
}
TASKS = {
    "decoder-llama": Task(("bleu", "loss"), "loss", 250, ("MAIN", "VARIANTS"), SMALL),
    "decoder-gpt2": Task(("bleu", "loss"), "loss", 250, ("MAIN",), SMALL),
    "encoder": Task(
        ("accuracy",), "accuracy", 120, ("MAIN",), {**SMALL, "full": (3e-5, 1e-4, 3e-4)}
    ),
    "vision": Task(("accuracy",), "accuracy", 200, ("MAIN", "VARIANTS"), SMALL),
    "smollm2": Task(
        ("loss", "bleu"), "loss", 100, ("REAL",), REAL, ("bytes", "cpu_seconds_a_step", "peak_mb")
    ),
}
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
    """Return the methods that run on a task, or those that are wanted."""
    import methods

    unknown = set(names) - set(methods.METHODS)
    if unknown:
        raise click.ClickException(f"no method is called {', '.join(map(repr, sorted(unknown)))}")
    if names:
        return [methods.METHODS[name] for name in names]
    return [method for group in TASKS[task].methods for method in getattr(methods, group)]


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


if __name__ == "__main__":
    main()
