"""The two tasks of the demonstration, and examples of them to train on and to be judged by."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.demo.places import as_list, as_text, parse_list, parse_text, random_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.demo.places import Facts

#: Task -> what it does to a prompt.
TASKS = {"say": "a list of facts becomes text", "read": "text becomes a list of facts"}
#: Ends a prompt; what follows is the answer.
SEPARATOR = "\n"
_HELD_OUT = 13  # of 256: five in a hundred


@dataclass(frozen=True)
class Example:
    """A prompt, the answer to it, and the facts of both."""

    facts: Facts
    prompt: str
    completion: str


def is_held_out(facts: Facts) -> bool:
    """Tell whether a combination of facts is kept from everything that trains."""
    named = ", ".join(f"{slot}: {value}" for slot, value in facts.items())
    return hashlib.sha256(named.encode()).digest()[0] < _HELD_OUT


def places(seed: int, *, held_out: bool = False) -> Iterator[tuple[Facts, random.Random]]:
    """Yield combinations of facts without end, for training or held out, and a generator."""
    rng = random.Random(seed)
    while True:
        facts = random_facts(rng)
        if is_held_out(facts) == held_out:
            yield facts, rng


def examples(task: str, count: int, seed: int, *, held_out: bool = False) -> list[Example]:
    """Return examples of a task.

    Parameters
    ----------
    task : {"say", "read"}
    count : int
    seed : int
        The same examples for the same seed, everywhere.
    held_out : bool
        Of facts that nothing was trained on.
    """
    made = []
    for (facts, rng), _ in zip(places(seed, held_out=held_out), range(count), strict=False):
        pair = as_list(facts), as_text(facts, rng)
        prompt, completion = pair if task == "say" else pair[::-1]
        made.append(Example(facts, prompt + SEPARATOR, completion))
    return made


def right_slots(task: str, facts: Facts, answer: str) -> tuple[int, int]:
    """Judge an answer: slots that are right, and slots that are in the facts or in the answer.

    A slot that is missing, wrong or made up is not right; in an answer that is not exactly a list
    of facts, or text of the grammar, none is.
    """
    found = (parse_text(answer) if task == "say" else parse_list(answer)) or {}
    slots = facts.keys() | found.keys()
    return sum(facts.get(slot) == found.get(slot) for slot in slots), len(slots)
