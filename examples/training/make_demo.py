"""Train what `nola-edge demo` ships: a tiny decoder and two adapters, packed in eight bits.

    python examples/training/make_demo.py --data E2E_FOLDER --cache CACHE

Writes python/nola_edge/demo/data: the base in bfloat16, `say.nola`, which says facts as a sentence,
`read.nola`, which reads a sentence as facts, and the vocabulary and prompts as JSON.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import click
import decoder
import e2e
import torch
import transformers
from peft import get_peft_model
from trainer import fit

from nola_edge import Adapter
from nola_edge.peft import NolaConfig

PATH = click.Path(path_type=Path)
TARGET = Path(__file__).parents[2] / "python" / "nola_edge" / "demo" / "data"


def turned(tokenizer: Any, pairs: list[e2e.Pair]) -> list[dict[str, Any]]:
    """Return examples that ask for the facts of a sentence."""
    examples = []
    for slots, sentence in pairs:
        prompt = [*tokenizer.encode(sentence).ids, 1]
        target = [*tokenizer.encode(e2e.as_text(slots)).ids, 0]
        labels = [decoder.IGNORED] * len(prompt) + target
        examples.append({"input_ids": prompt + target, "labels": labels})
    return examples


def train(base: Path, examples: list[dict[str, Any]], seed: int, steps: int, out: Path) -> None:
    """Train one adapter on the base as it is shipped and pack it."""
    transformers.set_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = NolaConfig(
        r=16, num_basis_a=64, num_basis_b=64, lora_alpha=32, seed=seed, coefficient_bits=8,
        target_modules=decoder.TARGETS["llama"],
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    fit(
        adapted, examples, decoder.collate, steps=steps, batch=16, learning_rate=1e-2, seed=seed,
        progress=True,
    )  # fmt: skip
    folder = out.with_suffix(".folder")
    adapted.save_pretrained(folder)
    Adapter.load(folder).pack(out, force=True)
    shutil.rmtree(folder)


@click.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--cache", default="decoder-cache", type=PATH, show_default=True)
@click.option("--steps", default=900, show_default=True)
@click.option("--out", default=TARGET, type=PATH)
def main(data: Path, cache: Path, steps: int, out: Path) -> None:
    """Make the demonstration's decoder and adapters."""
    tokenizer = decoder.make_tokenizer(data)
    out.mkdir(parents=True, exist_ok=True)
    base = out / "base"
    model = decoder.pretrained("llama", data, cache, 600)
    model.to(torch.bfloat16).save_pretrained(base)
    (base / "generation_config.json").unlink(missing_ok=True)
    train(base, decoder.pairs(tokenizer, data, "train"), 1, steps, out / "say.nola")
    train(base, turned(tokenizer, e2e.read(data, "train")), 2, steps, out / "read.nola")
    test = random.Random(0).sample(e2e.read(data, "test"), 4)
    texts = {
        "end": 0,
        "says": 1,
        "vocabulary": [tokenizer.decode([i], skip_special_tokens=False) for i in range(1000)],
        "prompts": {
            "say.nola": [tokenizer.encode(e2e.as_text(slots)).ids for slots, _ in test],
            "read.nola": [tokenizer.encode(sentence).ids for _, sentence in test],
        },
    }
    (out / "texts.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
