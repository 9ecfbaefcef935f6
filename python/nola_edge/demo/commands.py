"""Commands to a house, as English and as JSON: what the demonstration's real model learns to read.

A small grammar says each command in many ways. The prompts that the model is judged by are about
devices in rooms where no command that trains has them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

#: What the JSON says, in this order; a room or a time that is not said is left out.
Action = dict[str, "str | int"]

#: Unit of a level -> devices that have one.
_DEVICES = {
    "percent": (
        "lamp", "lights", "radio", "speaker", "fan", "television", "blinds", "music", "projector",
        "shutters", "curtains", "humidifier",
    ),
    "degrees": (
        "heating", "oven", "fridge", "freezer", "boiler", "water tank", "towel rail",
        "floor heating", "kettle", "air conditioner", "radiator", "dishwasher",
    ),
}  # fmt: skip
_ROOMS = (
    "kitchen", "hall", "bedroom", "bathroom", "garage", "study", "attic", "living room", "office",
    "dining room", "nursery", "garden", "guest room", "library", "cellar", "workshop",
)  # fmt: skip
#: One pair of a device and a room in so many is kept from training.
_HELD_OUT = 6
_LEVELS = {"percent": tuple(range(5, 100, 5)), "degrees": tuple(range(4, 31))}

_SWITCHING = (
    "turn {set} the {device}{room}", "turn the {device}{room} {set}",
    "switch {set} the {device}{room}", "switch the {device}{room} {set}",
)  # fmt: skip
_LEVELLING = (
    "set the {device}{room} to {set} {unit}", "put the {device}{room} at {set} {unit}",
    "turn the {device}{room} up to {set} {unit}", "turn the {device}{room} down to {set} {unit}",
    "bring the {device}{room} to {set} {unit}",
)  # fmt: skip
_OPENINGS = (
    "", "please ", "could you ", "can you ", "would you please ", "I want you to ",
    "I would like you to ", "do me a favour and ", "remember to ", "I am tired, so ",
)  # fmt: skip
_HOURS = (
    "twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven",
)  # fmt: skip
#: Part of the day -> its hours.
_PARTS = {
    "in the morning": range(5, 12), "in the afternoon": range(12, 18),
    "in the evening": range(18, 24),
}  # fmt: skip
#: Minute -> how it is said before the hour.
_PAST = {0: "", 30: "half past "}


@dataclass(frozen=True)
class Command:
    """What somebody says, and the JSON that it means."""

    sentence: str
    action: Action

    @property
    def answer(self) -> str:
        """Return the JSON as the adapter learns it."""
        return json.dumps(self.action)


def commands(count: int, seed: int, *, held_out: bool = False) -> list[Command]:
    """Return commands, the same for the same seed.

    Parameters
    ----------
    count : int
    seed : int
    held_out : bool
        About devices in rooms where no command that trains has them.
    """
    rng = random.Random(seed)
    found: list[Command] = []
    while len(found) < count:
        command = _command(rng)
        if _is_held_out(command.action) == held_out:
            found.append(command)
    return found


def _is_held_out(action: Action) -> bool:
    """Tell whether an action is about a device in a room where nothing that trains has it."""
    if "room" not in action:
        return False
    names = [name for group in _DEVICES.values() for name in group]
    pair = names.index(str(action["device"])) + _ROOMS.index(str(action["room"]))
    return pair % _HELD_OUT == 0


def is_right(action: Action, answer: str) -> bool:
    """Tell whether an answer is JSON that means an action: nothing missing, nothing else."""
    try:
        said: Any = json.loads(answer)
    except ValueError:
        return False
    return bool(said == action)


def _command(rng: random.Random) -> Command:
    unit = rng.choice(list(_DEVICES))
    action: Action = {"device": rng.choice(_DEVICES[unit])}
    room = ""
    noun = str(action["device"])
    if rng.random() < 0.8:
        action["room"] = rng.choice(_ROOMS)
        room = f" in the {action['room']}"
        if rng.random() < 0.4:
            room, noun = "", f"{action['room']} {noun}"
    switches = rng.random() < 0.5
    action["set"] = rng.choice(("on", "off")) if switches else rng.choice(_LEVELS[unit])
    template = rng.choice(_SWITCHING if switches else _LEVELLING)
    sentence = template.format(device=noun, room=room, set=action["set"], unit=unit)
    sentence = rng.choice(_OPENINGS) + sentence
    if rng.random() < 0.6:
        action["at"], time = _time(rng)
        sentence = f"{time}, {sentence}" if rng.random() < 0.3 else f"{sentence} {time}"
    return Command(sentence[0].upper() + sentence[1:] + ".", action)


def _time(rng: random.Random) -> tuple[str, str]:
    """Return a time of day on a clock of 24 hours, and in words."""
    part = rng.choice(list(_PARTS))
    hour = rng.choice(_PARTS[part])
    minute = rng.choice(list(_PAST))
    return f"{hour:02}:{minute:02}", f"at {_PAST[minute]}{_HOURS[hour % 12]} {part}"
