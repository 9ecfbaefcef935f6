"""Make what `nola-edge demo` ships: a small language model and two adapters, from this checkout.

    python examples/training/make_demo.py

The data are made by the grammar of nola_edge.demo.places; combinations of facts that are held out
are in nothing that trains. Writes the base in bfloat16 (a complete Hugging Face folder), `say.nola`
and `read.nola` with coefficients of eight bits, and the held-out prompts as tokens; prints the
scores. Six minutes of one core.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import click
import tokenizers
import torch
import transformers
from decoder import IGNORED, TARGETS, collate
from peft import get_peft_model

from nola_edge import Adapter
from nola_edge.demo.examples import SEPARATOR, TASKS, examples, places
from nola_edge.demo.places import as_text
from nola_edge.demo.scoring import DATA, Shipped, judge_task
from nola_edge.peft import NolaConfig

END, PAD = "<|end|>", "<|pad|>"
MOST_TOKENS = 512
PACKED_LENGTH = 128
COEFFICIENTS = 256
RATE = 4e-3
PROMPTS = 120
REPORT = 200


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level byte-pair encoding on texts, and on the words of lists."""
    trained = tokenizers.ByteLevelBPETokenizer()
    texts = []
    for example in examples("say", 4000, 0):
        words = ", ".join(f"{slot}: {value}" for slot, value in example.facts.items())
        texts += [words + SEPARATOR, example.completion]
    trained.train_from_iterator(texts, MOST_TOKENS, special_tokens=[END, PAD], show_progress=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token=END, eos_token=END, pad_token=PAD,
        model_max_length=256, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_tokenizer(tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer under the name of its class that older transformers know, too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_model(vocabulary: int) -> transformers.LlamaForCausalLM:
    """Return a LLaMA of random weights, 0.5M parameters."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.05,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def documents(tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """Return what the base reads: texts about a place, one after the other.

    Each of them says all the facts, in its own words. One document in twenty is random tokens, said
    twice, so that every token has been seen.
    """
    found = []
    every = sorted({t for e in examples("say", 1000, 0) for t in tokenizer.encode(
        e.prompt + e.completion
    )})  # fmt: skip
    for facts, rng in islice(places(seed), count):
        if rng.random() < 0.05:
            noise = rng.choices(every, k=rng.randrange(5, 25))
            found.append([*noise, *tokenizer.encode(SEPARATOR), *noise, tokenizer.eos_token_id])
        else:
            texts = [as_text(facts, rng) for _ in range(rng.choice((2, 3, 4, 5)))]
            found.append(tokenizer.encode(SEPARATOR.join(texts) + END))
    return found


def packed(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    """Put documents one after the other and cut them into examples of one length."""
    stream = [token for row in rows for token in row]
    cuts = range(0, len(stream) - PACKED_LENGTH, PACKED_LENGTH)
    pieces = [stream[start : start + PACKED_LENGTH] for start in cuts]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def train(
    model: torch.nn.Module,
    rows: list[Any],
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train with a short warm-up and a linear decay."""
    rng = random.Random(seed)
    schedules = [
        transformers.get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
        for optimizer in optimizers
    ]
    total = 0.0
    model.train()
    for step in range(1, steps + 1):
        loss = model(**collate(rng.sample(rows, batch))).loss
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        total += loss.item()
        if step % REPORT == 0:
            click.echo(f"  step {step}: loss {total / REPORT:.3f}")
            total = 0.0


def pretrain(folder: Path, steps: int) -> None:
    """Train the base and save it, with its tokenizer.

    Muon for the matrices of the layers, which learn several times as fast with it as with AdamW to
    carry facts from one text to the next.
    """
    transformers.set_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    rows = packed(documents(tokenizer, 40_000, 1))
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    train(model, rows, optimizers, steps, batch=8, seed=0)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)


def task_rows(tokenizer: Any, task: str, seed: int) -> list[dict[str, Any]]:
    """Return examples of a task; only the answers count as loss."""
    rows = []
    for example in examples(task, 30_000, seed):
        prompt = tokenizer.encode(example.prompt)
        target = tokenizer.encode(example.completion + END)
        labels = [IGNORED] * len(prompt) + target
        rows.append({"input_ids": prompt + target, "labels": labels})
    return rows


def train_adapter(base: Path, task: str, seed: int, steps: int, out: Path) -> None:
    """Train one adapter on the base as it is shipped and pack it."""
    transformers.set_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = NolaConfig(
        r=16, num_basis_a=COEFFICIENTS, num_basis_b=COEFFICIENTS, lora_alpha=32, seed=seed,
        coefficient_bits=8, target_modules=TARGETS["llama"], task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    rows = task_rows(tokenizer, task, seed)
    coefficients = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(coefficients, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    train(adapted, rows, [optimizer], steps, batch=8, seed=seed)
    pack(adapted, "base", out)


def pack(model: Any, base: str, out: Path) -> None:
    """Write a model's adapter as one file, for a base of this name."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        _based_on(Adapter.load(folder), base).pack(out, force=True)


def _based_on(adapter: Adapter, base: str) -> Adapter:
    """Return the adapter with another path of the base in its configuration."""
    bookkeeping = {**adapter.config.bookkeeping, "base_model_name_or_path": base}
    config = dataclasses.replace(adapter.config, bookkeeping=bookkeeping)
    return Adapter(config, adapter.modules)


def write_prompts(base: Path, path: Path) -> None:
    """Write the held-out prompts of each task as tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    prompts = {
        task: [tokenizer.encode(e.prompt) for e in examples(task, PROMPTS, 99, held_out=True)]
        for task in TASKS
    }
    path.write_text(json.dumps(prompts, separators=(",", ":")) + "\n", encoding="utf-8")


@click.command()
@click.option("--out", default=DATA, type=click.Path(path_type=Path), show_default=True)
@click.option("--base-steps", default=1200, show_default=True)
@click.option("--steps", default=2000, show_default=True, help="For each adapter.")
@click.option("--keep-base", is_flag=True, help="Use the base that is there.")
def main(out: Path, base_steps: int, steps: int, keep_base: bool) -> None:
    """Make the demonstration's model, adapters and prompts."""
    torch.set_num_threads(1)  # sums in the same order on every machine
    shipped = Shipped(out)
    out.mkdir(parents=True, exist_ok=True)
    if not keep_base:
        pretrain(shipped.base, base_steps)
    write_prompts(shipped.base, out / "prompts.json")
    for seed, task in enumerate(TASKS, start=1):
        train_adapter(shipped.base, task, seed, steps, shipped.adapter(task))
        result = judge_task(task, shipped)
        click.echo(f"{task}: {result.before.percent:.1f} % -> {result.after.percent:.1f} %")


if __name__ == "__main__":
    main()
