"""The shipped decoder and its adapters: what it says before and after each of them.

The decoder learned to write sentences about restaurants, and nothing else. Two adapters teach it,
one to say a list of facts as a sentence, the other to read a sentence as a list of facts.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from nola_edge.demo.decoder import Decoder
from nola_edge.merge.lazy import open_merged
from nola_edge.safetensors_file import SafetensorsFile

DATA = Path(__file__).parent / "data"
BASE = DATA / "base"


@dataclass(frozen=True)
class Speech:
    """One prompt to one adapter.

    Attributes
    ----------
    adapter : str
        File name.
    adapter_bytes : int
    prompt : str
    before, after : str
        What the base continues with, and what it does with the adapter merged.
    milliseconds : float
        Opening the base with the adapter merged: every weight of every layer.
    """

    adapter: str
    adapter_bytes: int
    prompt: str
    before: str
    after: str
    milliseconds: float


def speak(prompts: int = 2) -> list[Speech]:
    """Merge each adapter at load and let the decoder answer its first prompts.

    Parameters
    ----------
    prompts : int
        For each adapter.
    """
    about = json.loads((DATA / "texts.json").read_text(encoding="utf-8"))
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    vocabulary: list[str] = about["vocabulary"]

    def text(tokens: list[int]) -> str:
        return "".join(vocabulary[token] for token in tokens).strip()

    with SafetensorsFile.open(BASE / "model.safetensors") as file:
        plain = Decoder({name: file.array(name) for name in file.tensors}, config)
    found = []
    for adapter, given in about["prompts"].items():
        begin = time.perf_counter()
        with open_merged(BASE, DATA / adapter) as tensors:
            merged = dict(tensors)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        adapted = Decoder(merged, config)
        for prompt in given[:prompts]:
            before, after = (
                # The base has nothing to say to a list of facts: have it say something.
                text(model.generate([*prompt, about["says"]], stop=about["end"], least=8))
                for model in (plain, adapted)
            )
            size = (DATA / adapter).stat().st_size
            found.append(Speech(adapter, size, text(prompt), before, after, milliseconds))
    return found
