"""Let the shipped decoder answer all held-out prompts, with and without its adapters, and judge.

The decoder was trained on English about places to eat, and nothing else. Two adapters teach it a
task each: `say` turns a list of facts into text, `read` turns text into a list of facts.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.demo.child import result_of
from nola_edge.demo.decoder import Decoder
from nola_edge.demo.examples import SEPARATOR, right_slots
from nola_edge.demo.places import parse_list, parse_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Score:
    """Slots right, of those that are in the facts or in the answer."""

    right: int
    slots: int

    @property
    def percent(self) -> float:
        """Return the part that is right, 0 to 100."""
        return 100 * self.right / self.slots


@dataclass(frozen=True)
class Answer:
    """What the decoder makes of a prompt without (`before`) and with the adapter (`after`)."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class TaskResult:
    """One adapter, judged on its held-out prompts.

    Attributes
    ----------
    task : {"say", "read"}
    adapter_bytes : int
        Of the packed file.
    merge_milliseconds : float
        Merging the adapter into the base in memory.
    before, after : Score
        Of the base, and with the adapter merged, on the same prompts.
    answers : list of Answer
    """

    task: str
    adapter_bytes: int
    merge_milliseconds: float
    before: Score
    after: Score
    answers: list[Answer]


class Shipped:
    """The files that come with the package, read when they are asked for.

    Parameters
    ----------
    folder : Path
        Where they are.
    """

    def __init__(self, folder: Path = DATA) -> None:
        self.folder = folder
        self.base = folder / "base"
        self.weights = self.base / "model.safetensors"

    def adapter(self, task: str) -> Path:
        """Return where the packed adapter of a task is."""
        return self.folder / f"{task}.nola"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the base's ``config.json``."""
        config: dict[str, Any] = self._read("base/config.json")
        return config

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """Return the base's ``tokenizer.json``."""
        tokenizer: dict[str, Any] = self._read("base/tokenizer.json")
        return tokenizer

    @cached_property
    def prompts(self) -> dict[str, list[list[int]]]:
        """Return task -> held-out prompts, as tokens."""
        prompts: dict[str, list[list[int]]] = self._read("prompts.json")
        return prompts

    @cached_property
    def _vocabulary(self) -> dict[int, bytes]:
        special = {token["content"] for token in self.tokenizer["added_tokens"]}
        vocabulary: dict[str, int] = self.tokenizer["model"]["vocab"]
        byte_of = _byte_of_character()
        return {
            token: bytes(byte_of[character] for character in text)
            for text, token in vocabulary.items()
            if text not in special
        }

    def text(self, tokens: Sequence[int]) -> str:
        """Return what tokens say; special ones say nothing."""
        said = b"".join(self._vocabulary.get(token, b"") for token in tokens)
        return said.decode(errors="replace")

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def decoder(self, tensors: Mapping[str, NDArray[Any]]) -> Decoder:
        """Return the base's decoder with these tensors."""
        return Decoder(tensors, self.config)

    def answers(self, decoder: Decoder, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the greedy answers to prompts."""
        said = decoder.generate(prompts, stop=self.config["eos_token_id"])
        return [self.text(tokens) for tokens in said]


def judge_task(task: str, shipped: Shipped) -> TaskResult:
    """Merge an adapter in memory, and let the base answer with and without it.

    Parameters
    ----------
    task : {"say", "read"}
    shipped : Shipped
    """
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.merge.open import open_merged

    adapter = shipped.adapter(task)
    with SafetensorsFile.open(shipped.weights) as file:
        plain = shipped.decoder({name: file.array(name) for name in file.tensors})
    begin = time.perf_counter()
    with open_merged(shipped.base, adapter) as tensors:
        merged = dict(tensors)
    milliseconds = 1e3 * (time.perf_counter() - begin)
    prompts = shipped.prompts[task]
    texts = [shipped.text(prompt).removesuffix(SEPARATOR) for prompt in prompts]
    before = shipped.answers(plain, prompts)
    after = shipped.answers(shipped.decoder(merged), prompts)
    return TaskResult(
        task,
        adapter.stat().st_size,
        milliseconds,
        _score(task, texts, before),
        _score(task, texts, after),
        [Answer(*texts) for texts in zip(texts, before, after, strict=True)],
    )


def judged(task: str) -> TaskResult:
    """Return what :func:`judge_task` finds, in a process with one thread for products of matrices.

    The model is so small that several threads wait for one another longer than they work, on a
    busy machine fifty times as long.
    """
    found = result_of("nola_edge.demo.scoring", task, OPENBLAS_NUM_THREADS="1")
    scores = {when: Score(**found[when]) for when in ("before", "after")}
    answers = [Answer(**answer) for answer in found["answers"]]
    return TaskResult(**{**found, **scores, "answers": answers})


def _score(task: str, prompts: Sequence[str], answers: Sequence[str]) -> Score:
    pairs = [
        right_slots(task, facts_of(task, prompt), answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Score(sum(right for right, _ in pairs), sum(slots for _, slots in pairs))


def facts_of(task: str, prompt: str) -> dict[str, str]:
    """Return the facts that a prompt holds."""
    facts = parse_list(prompt) if task == "say" else parse_text(prompt)
    assert facts is not None, prompt
    return facts


def _byte_of_character() -> dict[str, int]:
    """Return what the characters of a byte-level vocabulary stand for.

    Printable bytes of Latin-1 stand for themselves, the others are counted from U+0100 on (GPT-2's
    ``bytes_to_unicode``).
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    counted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in themselves} | counted


if __name__ == "__main__":
    print(json.dumps(asdict(judge_task(sys.argv[1], Shipped()))))
