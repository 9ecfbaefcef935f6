"""A small decoder learns sentences, then, by an adapter, to say a meaning representation.

The paper's E2E task in miniature: a GPT-2-style or LLaMA-style model is pre-trained on the spot on
the sentences alone, and fine-tuned to write the sentence for `name : NAME ; area : city centre`.

    python examples/training/decoder.py --data E2E_FOLDER --method "NOLA 1/4" --save adapter

The same on two processes, each with batches of its own (once the first run has made the cache):

    torchrun --nproc-per-node 2 examples/training/decoder.py --data E2E_FOLDER --save adapter
    accelerate launch --cpu --num_processes 2 examples/training/decoder.py --data E2E_FOLDER
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import click
import e2e
import methods
import sacrebleu
import tokenizers
import torch
import transformers
from accelerate import PartialState
from torch import nn
from trainer import fit, pad

PATH = click.Path(path_type=Path)
END, SAYS = "<end>", "<says>"
IGNORED = -100
TARGETS = {
    "llama": r".*\.(q|k|v|o|gate|up|down)_proj",
    "gpt2": r".*\.(c_attn|c_proj|c_fc)",
}
#: Learning rates, as `python benchmarks/quality.py tune` chose them on the validation part for the
#: LLaMA-style model; the other is of the same size and learns the same data.
RATES = {
    "llama": {"full": 1e-3, "lora": 1e-2, "nola": 1e-2},
    "gpt2": {"full": 1e-3, "lora": 1e-2, "nola": 1e-2},
}
VOCABULARY = 1000


def make_tokenizer(data: Path) -> tokenizers.Tokenizer:
    """Train a byte-pair encoding on the training half."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    pairs = e2e.read(data, "train")
    texts = itertools.chain.from_iterable((e2e.as_text(m), sentence) for m, sentence in pairs)
    tokenizer.train_from_iterator(
        texts, VOCABULARY, special_tokens=[END, SAYS], show_progress=False
    )
    return tokenizer


def make_model(arch: str, width: int = 128, layers: int = 4) -> nn.Module:
    """Return a model of random weights, 0.9M parameters by default."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config: transformers.PretrainedConfig
    if arch == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=5 * width // 2,
            num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=256,
            tie_word_embeddings=True, **ids,
        )  # fmt: skip
    else:
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=4, n_positions=256, **ids
        )
    return transformers.AutoModelForCausalLM.from_config(config)


def sentences(tokenizer: Any, data: Path) -> list[dict[str, list[int]]]:
    """Return the training sentences alone."""
    encoded = [tokenizer.encode(s).ids for _, s in e2e.read(data, "train")]
    return [{"input_ids": [1, *ids, 0], "labels": [IGNORED, *ids, 0]} for ids in encoded]


def pairs(tokenizer: Any, data: Path, part: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return meaning representations with their sentences; only the sentences count as loss."""
    examples = []
    for slots, sentence in e2e.read(data, part)[:limit]:
        prompt = [*tokenizer.encode(e2e.as_text(slots)).ids, 1]
        target = [*tokenizer.encode(sentence).ids, 0]
        labels = [IGNORED] * len(prompt) + target
        examples.append({"input_ids": prompt + target, "labels": labels})
    return examples


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad examples on the right."""
    ids = pad([e["input_ids"] for e in batch], 0)
    lengths = torch.tensor([len(e["input_ids"]) for e in batch])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    labels = pad([e["labels"] for e in batch], IGNORED)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def pretrained(arch: str, data: Path, cache: Path, steps: int) -> nn.Module:
    """Return a model that knows the sentences, trained once and kept in a folder."""
    folder = cache / f"decoder-{arch}"
    if not folder.exists():
        if PartialState().num_processes > 1:
            raise click.ClickException(f"{folder} is not there; run once as a single process")
        transformers.set_seed(0)
        model = make_model(arch)
        data_set = sentences(make_tokenizer(data), data)
        fit(model, data_set, collate, steps=steps, batch=32, learning_rate=2e-3, seed=0)
        model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def mean_loss(model: nn.Module, examples: list[dict[str, Any]], size: int = 32) -> float:
    """Return the mean negative log-likelihood of a token of the sentences, in nats."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size])
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += float(model(**batch).loss) * tokens
        count += tokens
    return total / count


@torch.no_grad()
def bleu(
    model: nn.Module, tokenizer: Any, wanted: list[tuple[str, list[str]]], count: int
) -> float:
    """Return corpus BLEU of greedy sentences for some meanings, against all their references."""
    wanted = random.Random(0).sample(wanted, min(count, len(wanted)))
    said: list[str] = []
    model.eval()
    for start in range(0, len(wanted), 50):
        prompts = [[*tokenizer.encode(m).ids, 1] for m, _ in wanted[start : start + 50]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=60, do_sample=False, pad_token_id=0
        )
        for row in out[:, width:].tolist():
            said.append(tokenizer.decode(row[: [*row, 0].index(0)]).strip())
    return corpus_bleu(said, [references for _, references in wanted])


def corpus_bleu(said: list[str], references: list[list[str]]) -> float:
    """Return BLEU of sentences, each against any number of references."""
    most = max(map(len, references))
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(said, columns).score)


def run(
    data: Path, cache: Path, arch: str, method: methods.Method, seed: int, steps: int,
    rate: float | None = None, part: str = "test", save: Path | None = None,
    progress: bool = False, pretraining_steps: int = 600,
) -> dict[str, float]:  # fmt: skip
    """Fine-tune once and measure.

    Parameters
    ----------
    data, cache : Path
        Folder of the E2E files; folder of pre-trained models.
    arch : {"llama", "gpt2"}
    method : Method
    seed : int
        Of the random matrices and the order of the examples.
    steps : int
    rate : float, optional
        Learning rate.  Default: the one of `RATES`.
    part : {"test", "validation"}
        Where to measure.
    save : Path, optional
        Folder for the adapter.
    progress : bool
    pretraining_steps : int
        Where the cache is empty.

    Returns
    -------
    dict
        ``parameters``, ``loss`` (nats for a token) and ``bleu``.
    """
    tokenizer = make_tokenizer(data)
    model = pretrained(arch, data, cache, pretraining_steps)
    transformers.set_seed(seed)
    adapted, parameters = methods.apply(method, model, TARGETS[arch], seed)
    fit(
        adapted, pairs(tokenizer, data, "train"), collate, steps=steps, batch=16,
        learning_rate=rate or RATES[arch][method.kind], seed=seed, progress=progress,
    )  # fmt: skip
    if not PartialState().is_main_process:
        return {}
    if save is not None:
        adapted.save_pretrained(save)
    return {
        "parameters": parameters,
        "loss": mean_loss(adapted, pairs(tokenizer, data, part, 800)),
        "bleu": bleu(adapted, tokenizer, e2e.grouped(e2e.read(data, part)), 200),
    }


@click.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--cache", default="decoder-cache", type=PATH, show_default=True)
@click.option("--arch", type=click.Choice(list(TARGETS)), default="llama", show_default=True)
@click.option("--method", type=click.Choice(list(methods.METHODS)), default="NOLA 1/4")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--save", type=PATH, help="Save the adapter here.")
def main(
    data: Path, cache: Path, arch: str, method: str, seed: int, steps: int, save: Path | None
) -> None:
    """Fine-tune a small decoder on E2E and print loss and BLEU."""
    chosen = methods.METHODS[method]
    result = run(data, cache, arch, chosen, seed, steps, save=save, progress=True)
    click.echo("  ".join(f"{name} {value:.6g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
