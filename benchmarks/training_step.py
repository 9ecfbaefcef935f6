"""A training step with NOLA against PEFT's LoRA and against the public torch way.

    python benchmarks/training_step.py --save benchmarks/results/training.json

A LLaMA-style decoder of 25M parameters, every linear layer adapted, r = 16, k = l = 128, batch
8 x 128 tokens. Steps of the three methods are taken in turns in one process; peak memory is of a
process of its own for each. The torch way is `public_way.py`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import peft
import torch
import transformers
from torch import nn

from measure.report import machine
from nola_edge.demo.memory import peak_bytes
from nola_edge.peft import NolaConfig, NolaLinearLayer
from public_way import torch_way

RANK, NUM_BASIS, BATCH, LENGTH = 16, 128, 8, 128
METHODS = ("lora", "nola", "torch way")


def make(method: str) -> nn.Module:
    """Return the decoder with a method on all its linear layers."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if method == "lora":
        return peft.get_peft_model(
            model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
        )
    if method == "nola":
        options = {"r": RANK, "num_basis_a": NUM_BASIS, "num_basis_b": NUM_BASIS}
        return peft.get_peft_model(model, NolaConfig(**options, target_modules="all-linear"))
    return torch_way(model, NUM_BASIS)


def stepper(method: str) -> Callable[[], None]:
    """Return a function that takes one training step."""
    model = make(method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    ids = torch.randint(3, 2000, (BATCH, LENGTH))

    def step() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def factor_seconds(rounds: int) -> float:
    """Return the time that NOLA's own work takes in a step: all expansions and projections."""
    model = make("nola")
    layers = [m for m in model.modules() if isinstance(m, NolaLinearLayer)]
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for layer in layers:
            factors = layer.nola_factors["default"]
            alpha, beta = layer.coefficients("default")
            a, b = factors.a(alpha), factors.b(beta)
            torch.autograd.grad([a, b], [alpha, beta], [torch.ones_like(a), torch.ones_like(b)])
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peak_of(method: str) -> int:
    """Return the peak memory of a process that takes three steps."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", method],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@click.option("--memory-of", hidden=True)
def main(rounds: int, threads: int, save: Path | None, memory_of: str | None) -> None:
    """Measure a training step."""
    torch.set_num_threads(threads)
    if memory_of is not None:
        step = stepper(memory_of)
        for _ in range(3):
            step()
        click.echo(peak_bytes())
        return
    steps = {method: stepper(method) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn:
                times[method].append(time.perf_counter() - begin)
    seconds = {method: statistics.median(values) for method, values in times.items()}
    memory = {method: peak_of(method) for method in METHODS}
    own = factor_seconds(rounds)
    added = seconds["torch way"] - seconds["lora"]
    record = {
        "machine": machine(), "threads": threads, "seconds": seconds, "peak_bytes": memory,
        "nola_factor_seconds": own, "step_against_lora": seconds["nola"] / seconds["lora"],
        "torch_way_adds_over_nola_factors": added / own,
        "memory_over_lora_bytes": memory["nola"] - memory["lora"],
    }  # fmt: skip
    for method in METHODS:
        click.echo(
            f"{method:10} {seconds[method]:.3f} s a step, {memory[method] / 1e6:.0f} MB peak"
        )
    click.echo(f"NOLA's step against LoRA's: {record['step_against_lora']:.3f}x (wanted <= 1.10)")
    click.echo(
        f"what the torch way adds to LoRA's step is {added / own:.0f}x what expanding and "
        f"projecting take ({1e3 * own:.1f} ms; wanted >= 30)"
    )
    click.echo(f"memory over LoRA: {record['memory_over_lora_bytes'] / 1e6:+.1f} MB (wanted <= 0)")
    if save is not None:
        save.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
