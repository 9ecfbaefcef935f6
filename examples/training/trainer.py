"""transformers' Trainer with the settings that the examples share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Return rows of one length, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def fit(
    model: nn.Module,
    examples: list[Any],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: bool = False,
) -> list[float]:
    """Train with AdamW, a warm-up of a tenth and a cosine.

    Parameters
    ----------
    model : nn.Module
        Returns its loss.
    examples : list
    collate : callable
        List of examples -> arguments of the model.
    steps, batch, learning_rate, seed
    progress : bool
        Show the Trainer's bar and log.

    Returns
    -------
    list of float
        The training loss every tenth of the way.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch,
            learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=steps // 10,
            weight_decay=0.0, seed=seed, data_seed=seed, report_to=[], save_strategy="no",
            logging_steps=max(1, steps // 10), disable_tqdm=not progress, use_cpu=True,
            log_level="info" if progress else "error", remove_unused_columns=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=collate
        )
        if not progress:
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
