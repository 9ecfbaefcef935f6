"""Read the E2E NLG Challenge data: meaning representations and sentences that say them.

The files are those of github.com/tuetschek/e2e-dataset (CC BY-SA 4.0); give their folder. Names of
venues are replaced by NAME and NEAR in both, as is usual for this task: no name of the test set
occurs in training.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

TRAIN, TEST = "devset.csv", "testset_w_refs.csv"
_SLOT = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")


def read(path: Path) -> list[tuple[dict[str, str], str]]:
    """Return (slots, sentence) pairs of one of the files, without names."""
    with path.open(encoding="utf-8") as file:
        rows = [
            (dict(_SLOT.findall(row["mr"])), row["ref"].strip()) for row in csv.DictReader(file)
        ]
    return [_without_names(*row) for row in rows]


def _without_names(slots: dict[str, str], sentence: str) -> tuple[dict[str, str], str]:
    for slot in ("name", "near"):
        if slot in slots:
            sentence = re.sub(re.escape(slots[slot]), slot.upper(), sentence, flags=re.IGNORECASE)
            slots = {**slots, slot: slot.upper()}
    return slots, sentence


def as_text(slots: dict[str, str]) -> str:
    """Return a meaning representation in words: ``name : NAME ; area : city centre``."""
    return " ; ".join(f"{name} : {value}" for name, value in slots.items())


def grouped(pairs: list[tuple[dict[str, str], str]]) -> list[tuple[str, list[str]]]:
    """Return every meaning representation once, with all its sentences."""
    references: dict[str, list[str]] = defaultdict(list)
    for slots, sentence in pairs:
        references[as_text(slots)].append(sentence)
    return list(references.items())
