"""Changes that keep a file's form, so that the fuzzer gets past the parser of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.readers import PARTS

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 64, 65, 2**16, 2**31, 2**53 + 1, 2**62, 2**63, 10**400,
    0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"),
    "", "a", "é", "\ud800", "\n", "\u202e", "x" * 300, "head", "F32", "BF16", "F4", "U8",
    [], {}, [0], [0, 0], [[]], {"": None}, [1] * 70, ["head", "head"],
]  # fmt: skip


def mutated_json(text: bytes, rng: random.Random) -> bytes:
    """Change some values, keys or places of a JSON text; return it as it is if it is none."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for _ in range(rng.randint(1, 3)):
        root = _mutated(root, rng)
    # JSON knows no Infinity, and readers take this for it.
    return json.dumps(root).replace("Infinity", "1e999").encode()


def _mutated(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(_VALUES)
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    place = rng.randrange(len(items))
    key, inner = items[place]
    kind = rng.random()
    if kind < 0.6:
        items[place] = (key, _mutated(inner, rng))
    elif kind < 0.7:
        del items[place]
    elif kind < 0.8:
        items.append((rng.choice([key, "a", "é", "\ud800", "__metadata__"]), inner))
    elif kind < 0.9:
        items[place] = (key, rng.choice(items)[1])
    else:
        rng.shuffle(items)
    return dict(items) if isinstance(value, dict) else [item for _, item in items]


def mutate(reader: str, data: bytes, rng: random.Random) -> bytes | None:
    """Change the JSON in a reader's file; return None where that is not what to do."""
    change = _CHANGES.get(reader)
    return None if change is None or rng.random() < 0.5 else change(data, rng)


def _configuration(data: bytes, rng: random.Random) -> bytes:
    return mutated_json(data, rng)


def _packed(data: bytes, rng: random.Random) -> bytes:
    about, separator, rest = data.partition(PARTS)
    return mutated_json(about, rng) + separator + rest


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text = mutated_json(data[8 : 8 + length], rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "configuration": _configuration,
    "packed": _packed,
    "safetensors": _safetensors,
}
