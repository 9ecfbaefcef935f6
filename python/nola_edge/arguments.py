"""Arguments of the numerical functions, checked: an error begins with the argument's name."""

from __future__ import annotations

import operator
from typing import Any


def integer(name: str, value: Any, low: int, stop: int) -> int:
    """Return an integer in ``low .. stop - 1``; anything else is an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r} is not an integer") from None
    if not low <= number < stop:
        raise ValueError(f"{name}: {number} is not in {low}..{stop - 1}")
    return number


def pair(name: str, value: Any) -> tuple[int, int]:
    """Return two integers that are not negative; anything else is an error that names it."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {value!r} is not a pair of integers") from None
    return integer(name, first, 0, 1 << 63), integer(name, second, 0, 1 << 63)
