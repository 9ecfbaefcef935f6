"""The integrations that weights come through: merging at load, switching a resident model, GGUF.

    python benchmarks/integrations.py --save benchmarks/results/integrations.json

A LLaMA-style decoder of 0.32 billion parameters with random weights in bfloat16, all linear layers
adapted, r = 16, k = l = 128. Times in turns in one process; peak memory of a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import peft
import torch
import transformers

from gguf_merge import gguf_figures
from measure.report import heading, machine, record, row
from measure.timing import Figure, alternate
from nola_edge.demo.memory import peak_bytes
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.torch import AdapterSwitch
from nola_edge.transformers import NolaMergeConfig

RANK = 16


def prepare(folder: Path, rank: int = RANK) -> None:
    """Write a base, two NOLA adapters and a LoRA one of the same rank."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=20,
        num_attention_heads=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="300MB")
    shapes = {
        name.removesuffix(".weight"): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if "_proj." in name
    }
    for seed, name in enumerate(("first", "second")):
        trained_adapter(shapes, r=rank, num_basis=128, seed=seed).save(folder / name)
    lora = peft.LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(folder / "lora")


def load(folder: Path, adapter: str | None = None) -> Any:
    options = {} if adapter is None else {"quantization_config": NolaMergeConfig(folder / adapter)}
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base", **options)


def load_lora(folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(load(folder), folder / "lora").merge_and_unload()


def peak_of(folder: Path, adapter: str | None) -> int:
    command = [sys.executable, __file__, "--memory-in", str(folder), "--memory-of", adapter or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def figures(folder: Path, rounds: int) -> Iterator[Figure]:
    def touched(model: Any) -> None:
        # What is only mapped has not been read yet.
        for parameter in model.parameters():
            parameter.view(torch.int16).max()

    ours, plain = alternate(
        lambda: touched(load(folder, "first")), lambda: touched(load(folder)), rounds=rounds
    )
    yield Figure(
        "transformers at load, 0.32B, bfloat16", "from_pretrained", ours, plain, 1.25, False,
        f"{ours:.2f} s against {plain:.2f} s, every page touched",
    )  # fmt: skip

    def forget() -> None:
        for path in (folder / "base").iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    if hasattr(os, "posix_fadvise"):
        cold, cold_plain = alternate(
            lambda: touched(load(folder, "first")),
            lambda: touched(load(folder)),
            rounds=rounds,
            prepare=forget,
        )
        yield Figure(
            "… files not in the page cache", "from_pretrained", cold, cold_plain, 1.25, False,
            f"{cold:.2f} s against {cold_plain:.2f} s",
        )  # fmt: skip
    merging, peft_merging = alternate(
        lambda: touched(load(folder, "first")), lambda: touched(load_lora(folder)), rounds=rounds
    )
    yield Figure(
        "… the merging part", "PEFT LoRA, merge_and_unload", max(merging - plain, 1e-3),
        peft_merging - plain, 3, True, f"{peft_merging:.2f} s in all",
    )  # fmt: skip
    memory, least = peak_of(folder, "first"), peak_of(folder, None)
    yield Figure(
        "… peak memory", "from_pretrained", memory, least, 1.1, False, f"{memory / 1e6:.0f} MB"
    )
    model = load(folder)
    first = {name: p.clone() for name, p in model.named_parameters()}
    with AdapterSwitch(model, folder / "base") as switch:
        for name in ("first", "second"):
            switch.add(name, folder / name)
            switch.use(name)

        def swap() -> None:
            switch.use("first" if switch.active == "second" else "second")

        ours, plain = alternate(swap, lambda: touched(load(folder)), rounds=rounds)
        switch.use(None)
    exact = all(torch.equal(p, first[name]) for name, p in model.named_parameters())
    note = f"{ours:.2f} s; back to none " + ("bit for bit" if exact else "NOT EXACT")
    yield Figure("hot swap between two adapters", "from_pretrained", ours, plain, 0.5, False, note)


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@click.option("--memory-in", type=click.Path(path_type=Path), hidden=True)
@click.option("--memory-of", hidden=True)
def main(
    rounds: int, threads: int, save: Path | None, memory_in: Path | None, memory_of: str | None
) -> None:
    """Measure merging at load, switching, and merging into GGUF."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    if memory_in is not None:
        model = load(memory_in, memory_of or None)
        for parameter in model.parameters():
            parameter.view(torch.int16).max()
        click.echo(peak_bytes())
        return
    about = machine()
    click.echo(heading(about))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        measured = []
        parts = figures(Path(folder), rounds), gguf_figures(Path(folder), rounds, threads)
        for figure in itertools.chain(*parts):
            click.echo(row(figure))
            measured.append(figure)
    if save is not None:
        save.write_text(json.dumps(record(measured, about), indent=2) + "\n")


if __name__ == "__main__":
    main()
