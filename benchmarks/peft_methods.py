"""Compare the sizes and merging times of PEFT's methods with few parameters on one model.

    python benchmarks/peft_methods.py --save benchmarks/results/peft-methods.json

The model has the shape of SmolLM2-135M and random weights; every method adapts all 210 linear
layers, with its own default settings except where a comment says otherwise. What is counted is
what the optimiser would get and what `save_pretrained` writes. Merging is `merge_and_unload` of
the model in memory, the median of `--repeats`; NOLA's is also the torch-free `open_merged` of all
weights. Nothing is trained: quality is benchmarks/quality.py's.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import peft
import torch
import transformers

import nola_edge
from nola_edge.peft import NolaConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Layers' widths are multiples of 64, so VB-LoRA's vectors are shorter than its default of 256.
METHODS: dict[str, Any] = {
    "LoRA r = 16": lambda: peft.LoraConfig(r=16, target_modules=TARGETS),
    "LoRA r = 1": lambda: peft.LoraConfig(r=1, target_modules=TARGETS),
    "RandLoRA": lambda: peft.RandLoraConfig(target_modules=TARGETS),
    "VeRA": lambda: peft.VeraConfig(target_modules=TARGETS),
    "VB-LoRA": lambda: peft.VBLoRAConfig(
        vector_length=64, save_only_topk_weights=True, target_modules=TARGETS
    ),
    "TinyLoRA": lambda: peft.TinyLoraConfig(target_modules=TARGETS),
    "Uni-LoRA": lambda: peft.UniLoraConfig(target_modules=TARGETS),
    "NOLA": lambda: NolaConfig(seed=42, target_modules=TARGETS),
}


def make_model() -> transformers.PreTrainedModel:
    """Return a model of SmolLM2-135M's shape with random bfloat16 weights."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Return a method's trained numbers, bytes on disk and seconds of merging."""
    seconds, saved = [], {}
    for _ in range(repeats):
        model = peft.get_peft_model(make_model(), METHODS[name]())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = {f.name: f.stat().st_size for f in Path(folder).glob("adapter_*")}
        begin = time.perf_counter()
        model.merge_and_unload()
        seconds.append(time.perf_counter() - begin)
    return {
        "method": name,
        "trained": trained,
        "bytes": sum(saved.values()),
        "merge_seconds": median(seconds),
    }


def measure_without_torch(repeats: int) -> float:
    """Return the seconds in which `open_merged` gives every weight, files in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder, "base"), Path(folder, "adapter")
        model = make_model()
        model.save_pretrained(base)
        peft.get_peft_model(model, METHODS["NOLA"]()).save_pretrained(adapter)
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            with nola_edge.open_merged(base, adapter) as weights:
                for _ in weights.items():
                    pass
            seconds.append(time.perf_counter() - begin)
    return median(seconds)


@click.command()
@click.option("--save", type=click.Path(path_type=Path), help="Write the figures here, as JSON.")
@click.option("--repeats", default=3, show_default=True)
def main(save: Path | None, repeats: int) -> None:
    """Measure every method, in one run, and print a table."""
    rows = []
    for name in METHODS:
        rows.append(measure(name, repeats))
        row = rows[-1]
        click.echo(
            f"{name:12} {row['trained']:>12,} trained  {row['bytes'] / 1e6:8.2f} MB on disk  "
            f"merged in {row['merge_seconds']:.2f} s"
        )
    without_torch = measure_without_torch(repeats)
    click.echo(f"NOLA without torch: every weight opened and merged in {without_torch:.2f} s")
    if save is not None:
        record = {
            "model": "the shape of SmolLM2-135M, bfloat16, 210 linear layers",
            "machine": platform.processor() or platform.machine(),
            "isa": nola_edge.build_info()["active_isa"],
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "peft": peft.__version__},
            "methods": rows,
            "nola_without_torch_seconds": without_torch,
        }
        save.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
