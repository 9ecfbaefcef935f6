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

#: A meaning representation's slots, and a sentence that says it.
Pair = tuple[dict[str, str], str]

_SLOT = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")


def read(data: Path, part: str) -> list[Pair]:
    """Return the pairs of a part of the data, without names.

    The development set serves for training; every tenth of its meaning representations, with all
    its sentences, is kept for validation. The test set shares no meaning representation with it.

    Parameters
    ----------
    data : Path
        Folder of the files.
    part : {"train", "validation", "test"}
    """
    if part == "test":
        return _pairs(data / "testset_w_refs.csv")
    pairs = _pairs(data / "devset.csv")
    meanings = list(dict.fromkeys(as_text(slots) for slots, _ in pairs))
    held_out = set(meanings[::10])
    return [pair for pair in pairs if (as_text(pair[0]) in held_out) == (part == "validation")]


def _pairs(path: Path) -> list[Pair]:
    with path.open(encoding="utf-8") as file:
        rows = [
            (dict(_SLOT.findall(row["mr"])), row["ref"].strip()) for row in csv.DictReader(file)
        ]
    return [_without_names(*row) for row in rows]


def _without_names(slots: dict[str, str], sentence: str) -> Pair:
    for slot in ("name", "near"):
        if slot in slots:
            sentence = re.sub(re.escape(slots[slot]), slot.upper(), sentence, flags=re.IGNORECASE)
            slots = {**slots, slot: slot.upper()}
    return slots, sentence


def as_text(slots: dict[str, str]) -> str:
    """Return a meaning representation in words: ``name : NAME ; area : city centre``."""
    return " ; ".join(f"{name} : {value}" for name, value in slots.items())


def grouped(pairs: list[Pair]) -> list[tuple[str, list[str]]]:
    """Return every meaning representation once, with all its sentences."""
    references: dict[str, list[str]] = defaultdict(list)
    for slots, sentence in pairs:
        references[as_text(slots)].append(sentence)
    return list(references.items())
