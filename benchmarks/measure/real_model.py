"""SmolLM2 on held-out pairs: the loss, and how far it has come from what it said first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers


def real_model(cache: Path) -> tuple[Any, Any]:
    """Return the model in float32, and its tokenizer."""
    import smollm2

    folder = smollm2.base_folder(cache)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


class HeldOut:
    """What a model says about pairs of the validation part.

    Parameters
    ----------
    model : LlamaForCausalLM
        Its weights may change between measurements.
    tokenizer
    data : Path
        Folder of the E2E files.
    pairs : int
    batch : int
    """

    def __init__(self, model: Any, tokenizer: Any, data: Path, pairs: int, batch: int) -> None:
        import smollm2
        from decoder import collate

        examples = smollm2.pairs(tokenizer, data, "validation", pairs)
        examples.sort(key=lambda example: len(example["input_ids"]))  # less padding
        self._model = model
        self._batches = [collate(examples[i : i + batch]) for i in range(0, pairs, batch)]
        self._first: list[torch.Tensor] = []

    @torch.no_grad()
    def _log_probabilities(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield those of every batch, (tokens of its sentences, vocabulary), and the tokens."""
        for batch in self._batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            hidden = self._model.model(**inputs).last_hidden_state[:, :-1]
            labels = batch["labels"][:, 1:]
            said = self._model.lm_head(hidden[labels >= 0]).log_softmax(-1)
            yield said, labels[labels >= 0]

    def loss_and_divergence(self) -> tuple[float, float]:
        """Return both in nats for a token; the Kullback-Leibler divergence from the first time."""
        loss, divergence, count, is_first = 0.0, 0.0, 0, not self._first
        for number, (said, labels) in enumerate(self._log_probabilities()):
            if is_first:
                self._first.append(said)
            first = self._first[number]
            loss -= float(said.gather(1, labels[:, None]).sum())
            divergence += float((first.exp() * (first - said)).sum())
            count += len(labels)
        return loss / count, divergence / count
