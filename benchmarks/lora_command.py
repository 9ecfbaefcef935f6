"""Merging a LoRA by the command line, against PEFT's way: load, merge_and_unload, save.

    python benchmarks/lora_command.py --save benchmarks/results/lora-command.json

The model has the shape of SmolLM2-135M with random bfloat16 weights; LoRA r = 16 on all 210 linear
layers. Each way is a process of its own, in turns, so that start-up and imports count on both
sides, as they do for somebody who merges a folder. Peak memory is what the process held at most.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import peft
import torch

from measure.process import run
from measure.report import heading, machine, record, row
from measure.timing import Figure
from peft_methods import TARGETS, make_model

PEFT_WAY = """
import sys, peft, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def prepare(folder: Path) -> None:
    """Write a base, and a LoRA whose B is not zero."""
    model = make_model()
    model.save_pretrained(folder / "base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tuned.save_pretrained(folder / "lora")


def measure(folder: Path, rounds: int) -> list[Figure]:
    """Return the figures of both ways, medians of turns after one that is not counted."""
    inputs = [str(folder / "base"), str(folder / "lora")]
    taken: dict[str, list[tuple[float, int]]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        out = [str(folder / f"out-{turn}"), str(folder / f"peft-{turn}")]
        ours = run([sys.executable, "-m", "nola_edge", "merge", *inputs, "-o", out[0], "-q"])
        theirs = run([sys.executable, "-c", PEFT_WAY, *inputs, out[1]])
        if turn:
            taken["ours"].append(ours)
            taken["theirs"].append(theirs)
    median: dict[str, Any] = {
        way: [statistics.median(values) for values in zip(*found, strict=True)]
        for way, found in taken.items()
    }
    (seconds, peak), (their_seconds, their_peak) = median["ours"], median["theirs"]
    note = f"{seconds:.2f} s against {their_seconds:.2f} s"
    megabytes = f"{peak / 1e6:.0f} MB; PEFT's process {their_peak / 1e6:.0f} MB"
    return [
        Figure(
            "nola-edge merge of a LoRA",
            "PEFT: load, merge, save",
            seconds,
            their_seconds,
            3,
            True,
            note,
        ),
        Figure("peak memory", "300 MB", peak, 300e6, 1, False, megabytes),
    ]


@click.command()
@click.option("--save", type=click.Path(path_type=Path))
@click.option("--rounds", default=5, show_default=True)
def main(save: Path | None, rounds: int) -> None:
    """Measure, print and save the figures."""
    about = machine()
    print(heading(about))
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        figures = measure(Path(scratch), rounds)
    for figure in figures:
        print(row(figure))
    if save is not None:
        save.write_text(json.dumps(record(figures, about), indent=2) + "\n")


if __name__ == "__main__":
    main()
