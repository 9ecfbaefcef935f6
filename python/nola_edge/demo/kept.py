"""What ``nola-edge demo --keep`` leaves: a small model, its adapters, and examples to train on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from nola_edge.adapters import Adapter
from nola_edge.demo.examples import SEPARATOR, TASKS, examples
from nola_edge.demo.gguf_model import write_llama
from nola_edge.demo.places import as_list
from nola_edge.demo.scoring import Shipped, facts_of
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nola_edge.files.atomic import AtomicOutput

_TRAIN_EXAMPLES = 1000
_TRAIN_SEED = 1
_BASE_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


def keep(output: AtomicOutput) -> None:
    """Write the demonstration's files into an output folder."""
    shipped = Shipped()
    for name in _BASE_FILES:
        _copy(output, shipped.base / name, f"base/{name}")
    for task in TASKS:
        _unpack(output, shipped, task)
    _copy(output, shipped.adapter("read"), "read.nola")
    _write_gguf(output, shipped)
    train = examples("read", _TRAIN_EXAMPLES, _TRAIN_SEED)
    _write_lines(output, "train.jsonl", ((e.prompt, e.completion) for e in train))
    _write_lines(output, "test.jsonl", _held_out_pairs(shipped))


def _copy(output: AtomicOutput, source: Path, name: str) -> None:
    with output.file(name) as path:
        shutil.copyfile(source, path)


def _unpack(output: AtomicOutput, shipped: Shipped, task: str) -> None:
    Adapter.load(shipped.adapter(task)).save(output.path / task)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with output.file(f"{task}/{name}"):  # written already; now it is looked for
            pass


def _write_gguf(output: AtomicOutput, shipped: Shipped) -> None:
    with output.file("base.gguf") as path, SafetensorsFile.open(shipped.weights) as file:
        tensors = {name: file.array(name) for name in file.tensors}
        write_llama(path, tensors, shipped.config, shipped.tokenizer)


def _held_out_pairs(shipped: Shipped) -> Iterator[tuple[str, str]]:
    """Yield the prompts that `read` is judged by, and the right answers."""
    for tokens in shipped.prompts["read"]:
        prompt = shipped.text(tokens)
        yield prompt, as_list(facts_of("read", prompt.removesuffix(SEPARATOR)))


def _write_lines(output: AtomicOutput, name: str, pairs: Iterable[tuple[str, str]]) -> None:
    with output.file(name) as path, path.open("x", encoding="utf-8") as file:
        for prompt, completion in pairs:
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
