"""Facts about places to eat, as lists and as English: what the demonstration's models speak of.

A small grammar of our own says the same facts in many ways, and reads its own sentences back
strictly, so that what a model says can be judged exactly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    Facts = dict[str, str]

KINDS = ("pub", "restaurant", "bistro", "diner", "inn", "canteen")
FOODS = (
    "Italian", "Chinese", "Indian", "French", "Japanese", "Greek", "Mexican", "Thai", "English",
    "Turkish",
)  # fmt: skip
#: Slot -> what it may hold, in the order of a list of facts.
SLOTS = {
    "kind": KINDS,
    "food": FOODS,
    "price": ("low", "medium", "high"),
    "area": ("river", "centre", "station", "park", "harbour", "market"),
    "stars": ("1", "2", "3", "4", "5"),
    "families": ("welcome", "unwelcome"),
}
#: Slot -> words before the noun, in this order.
ADJECTIVES = {"stars": ("{}-star",), "price": ("{}-priced",), "food": ("{}",)}
AREAS = ("by the {}", "near the {}", "close to the {}")
#: Slot -> clauses that say it.
CLAUSES = {
    "food": ("it serves {} food", "the kitchen is {}", "{} dishes are served"),
    "price": ("prices are {}", "its prices are {}"),
    "area": tuple(f"it is {area}" for area in AREAS),
    "stars": ("guests give it {} stars", "it has {} stars", "it is rated {} stars"),
    "families": ("families are {}", "children are {}"),
}
OPENINGS = ("there is", "you can find", "this is", "here is")
OPENINGS_AFTER_AREA = OPENINGS[:2]
ANY_KIND = "place"


def random_facts(rng: random.Random) -> Facts:
    """Return values of three to six slots."""
    slots = set(rng.sample(list(SLOTS), rng.choice((3, 4, 5, 5, 6, 6))))
    return {slot: rng.choice(values) for slot, values in SLOTS.items() if slot in slots}


def as_list(facts: Facts) -> str:
    """Write facts as a list."""
    return ", ".join(f"{slot}: {_listed(slot, value)}" for slot, value in facts.items())


def parse_list(text: str) -> Facts | None:
    """Read a list of facts, None if the text is not exactly one."""
    said = dict(pair.split(": ") for pair in text.split(", ") if pair.count(": ") == 1)
    facts = {
        slot: value
        for slot, values in SLOTS.items()
        for value in values
        if said.get(slot) == _listed(slot, value)
    }
    return facts if as_list(facts) == text else None


def _listed(slot: str, value: str) -> str:
    return f"the {value}" if slot == "area" else value


def as_text(facts: Facts, rng: random.Random) -> str:
    """Say facts in English, in one of many ways."""

    def phrase(slot: str, templates: tuple[str, ...]) -> str:
        return rng.choice(templates).format(facts[slot])

    adjectives = [slot for slot in ADJECTIVES if slot in facts and rng.random() < 0.6]
    words = [phrase(slot, ADJECTIVES[slot]) for slot in adjectives]
    noun = " ".join([*words, facts.get("kind", ANY_KIND)])
    noun = f"{_article(noun)} {noun}"
    told = {"kind", *adjectives}
    first = f"{rng.choice(OPENINGS)} {noun}"
    if "area" in facts and rng.random() < 0.7:
        told.add("area")
        area = phrase("area", AREAS)
        first = f"{first} {area}"
        if rng.random() < 0.4:
            first = f"{area}, {rng.choice(OPENINGS_AFTER_AREA)} {noun}"
    rest = [phrase(slot, CLAUSES[slot]) for slot in facts if slot not in told]
    rng.shuffle(rest)
    return ". ".join(_upper(sentence) for sentence in [first, *_joined(rest, rng)]) + "."


def _joined(clauses: list[str], rng: random.Random) -> list[str]:
    """Join some clauses in pairs."""
    sentences = []
    while clauses:
        count = rng.choice((1, 2))
        sentences.append(" and ".join(clauses[:count]))
        clauses = clauses[count:]
    return sentences


def parse_text(text: str) -> Facts | None:
    """Read sentences of :func:`as_text` back; None if the text is not like that."""
    first, *rest = text.removesuffix(".").split(". ") if text.endswith(".") else [""]
    found = _FIRST.fullmatch(_lower(first))
    if found is None or any(_upper(sentence) != sentence for sentence in (first, *rest)):
        return None
    pairs = [_MEANINGS[phrase] for phrase in found.groups() if phrase not in (None, ANY_KIND)]
    for clause in (clause for sentence in rest for clause in sentence.split(" and ")):
        meaning = _MEANINGS.get(clause) or _MEANINGS.get(_lower(clause))
        if meaning is None:
            return None
        pairs.append(meaning)
    facts = dict(pairs)
    return {s: facts[s] for s in SLOTS if s in facts} if len(facts) == len(pairs) else None


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiouAEIOU" else "a"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _phrases(slot: str, templates: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return phrase -> slot and value."""
    return {t.format(value): (slot, value) for t in templates for value in SLOTS[slot]}


def _first_sentence() -> re.Pattern[str]:
    """Return what the first sentence looks like, beginning in lower case."""
    adjectives = "".join(f"(?:({_one_of(_phrases(*entry))}) )?" for entry in ADJECTIVES.items())
    kind = f"({_one_of((*KINDS, ANY_KIND))})"
    noun = f"(?:a (?![aeiouAEIOU])|an (?=[aeiouAEIOU])){adjectives}{kind}"
    area = f"({_one_of(_phrases('area', AREAS))})"
    return re.compile(
        f"(?:{_one_of(OPENINGS)}) {noun}(?: {area})?"
        f"|{area}, (?:{_one_of(OPENINGS_AFTER_AREA)}) {noun}"
    )


def _one_of(phrases: Iterable[str]) -> str:
    return "|".join(map(re.escape, phrases))


_TEMPLATES = [("kind", ("{}",)), *ADJECTIVES.items(), ("area", AREAS), *CLAUSES.items()]
_MEANINGS = {phrase: fact for entry in _TEMPLATES for phrase, fact in _phrases(*entry).items()}
_FIRST = _first_sentence()
