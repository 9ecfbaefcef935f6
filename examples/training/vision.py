"""A small vision transformer meets a domain shift.

A ViT learns scikit-learn's handwritten digits, upright and bright on dark; then an adapter has it
read them turned, inverted and noisy, from 300 examples.

    python examples/training/vision.py --method "NOLA 1/4"
"""

from __future__ import annotations

from pathlib import Path

import click
import methods
import numpy as np
import torch
import transformers
from sklearn.datasets import load_digits
from torch import nn
from trainer import fit

#: Learning rates, as `python benchmarks/quality.py tune` chose them on the validation part.
RATES = {"full": 1e-3, "lora": 1e-2, "nola": 1e-2}
TARGETS = r".*\.(query|key|value|q_proj|k_proj|v_proj|o_proj|dense|fc1|fc2|out_proj)"
SIZE = 8


def digits(shifted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 1, 8, 8) in -1 .. 1 and labels (n,)."""
    data = load_digits()
    images = data.images.astype(np.float32) / 8 - 1
    if shifted:
        noise = np.random.default_rng(0).normal(0, 0.3, images.shape).astype(np.float32)
        images = -np.rot90(images, axes=(1, 2)) + noise
    return images[:, None].copy(), data.target


def collate(batch: list[tuple[np.ndarray, int]]) -> dict[str, torch.Tensor]:
    """Stack images and labels."""
    return {
        "pixel_values": torch.tensor(np.stack([image for image, _ in batch])),
        "labels": torch.tensor([int(label) for _, label in batch]),
    }


def examples(shifted: bool, part: str) -> list[tuple[np.ndarray, int]]:
    """Return the images and labels of a part: "train" (900), "validation" (300) or "test" (597)."""
    begin, end = {"train": (0, 900), "validation": (900, 1200), "test": (1200, 1797)}[part]
    order = np.random.default_rng(1).permutation(1797)[begin:end]
    images, labels = digits(shifted)
    return [(images[i], labels[i]) for i in order]


def pretrained(cache: Path) -> nn.Module:
    """Return a ViT that reads upright digits, trained once and kept in a folder."""
    folder = cache / "vision"
    if not folder.exists():
        transformers.set_seed(0)
        config = transformers.ViTConfig(
            image_size=SIZE, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=4,
            num_attention_heads=4, intermediate_size=128, num_labels=10,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
        fit(
            model,
            examples(False, "train"),
            collate,
            steps=600,
            batch=64,
            learning_rate=2e-3,
            seed=0,
        )
        model.save_pretrained(folder)
    return transformers.ViTForImageClassification.from_pretrained(folder)


@torch.no_grad()
def accuracy(model: nn.Module, images: list[tuple[np.ndarray, int]]) -> float:
    """Return the part of the images that are read right."""
    model.eval()
    batch = collate(images)
    return float((model(**batch).logits.argmax(-1) == batch["labels"]).float().mean())


def run(
    cache: Path, method: methods.Method, seed: int, steps: int,
    rate: float | None = None, part: str = "test", progress: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Adapt once; returns parameters and the accuracy on shifted images of a part of the data.

    See :func:`decoder.run` for the parameters.
    """
    model = pretrained(cache)
    transformers.set_seed(seed)
    adapted, parameters = methods.apply(method, model, TARGETS, seed)
    fit(
        adapted, examples(True, "train")[:300], collate, steps=steps, batch=32,
        learning_rate=rate or RATES[method.kind], seed=seed, progress=progress,
    )  # fmt: skip
    return {"parameters": parameters, "accuracy": accuracy(adapted, examples(True, part))}


@click.command()
@click.option("--cache", default="vision-cache", type=click.Path(path_type=Path), show_default=True)
@click.option("--method", type=click.Choice(list(methods.METHODS)), default="NOLA 1/4")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=200, show_default=True)
def main(cache: Path, method: str, seed: int, steps: int) -> None:
    """Adapt a small ViT to a domain shift and print the accuracy."""
    result = run(cache, methods.METHODS[method], seed, steps, progress=True)
    click.echo("  ".join(f"{name} {value:.6g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
