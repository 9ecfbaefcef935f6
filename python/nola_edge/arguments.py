"""Arguments of the public functions, checked: an error begins with the argument's name."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from nola_edge.errors import ArgumentError, ArgumentTypeError, printable


def wrong_type(name: str, value: Any, wanted: str) -> ArgumentTypeError:
    """Return the error for an argument of a type that cannot be used."""
    shown = printable(repr(value), 60)
    return ArgumentTypeError(f"{shown} is not {wanted}", field=name, value=value)


def integer(name: str, value: Any, low: int, stop: int) -> int:
    """Return an integer in ``low .. stop - 1``; anything else is an error that names it."""
    if isinstance(value, bool):
        raise wrong_type(name, value, "an integer")
    try:
        found = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, "an integer") from None
    if not low <= found < stop:
        shown = printable(found) if abs(found) < 1 << 128 else "an integer of many digits"
        raise ArgumentError(f"{shown} is not in {low}..{stop - 1}", field=name, value=found)
    return found


def pair(name: str, value: Any) -> tuple[int, int]:
    """Return two integers that are not negative; anything else is an error that names it."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise wrong_type(name, value, "a pair of integers") from None
    return integer(name, first, 0, 1 << 63), integer(name, second, 0, 1 << 63)


def number(name: str, value: Any) -> float:
    """Return a float; anything else, or a number too large for one, is an error that names it."""
    if isinstance(value, bool):
        raise wrong_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError("is too large for a float", field=name, value=value) from None
    except (TypeError, ValueError):
        raise wrong_type(name, value, "a number") from None


def path(name: str, value: Any) -> Path:
    """Return a path that a file could have; anything else is an error that names it.

    An empty text is not one: it comes from a variable that was never set, and a path of no parts
    would be the current folder.
    """
    if isinstance(value, str) and not value:
        raise ArgumentError("is empty; a path is needed", field=name, value=value)
    try:
        found = Path(value)
        encoded = os.fsencode(found)
    except TypeError:
        raise wrong_type(name, value, "a path") from None
    except UnicodeEncodeError:
        raise ArgumentError(
            f"{printable(value)} cannot be the name of a file here", field=name, value=value
        ) from None
    if b"\0" in encoded:
        raise ArgumentError(f"{printable(found)} has a null character", field=name, value=value)
    return found


def text(name: str, value: Any) -> str:
    """Return a string that UTF-8 can express; anything else is an error that names it."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(
            f"{printable(value)} cannot be written in UTF-8", field=name, value=value
        ) from None
    return value


def check_arrays(**arrays: Any) -> None:
    """Refuse arguments that are not numpy arrays; the error names the first."""
    import numpy as np  # here: a command that only prints its help does without

    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ArgumentTypeError(
                f"must be a numpy array, got {type(array).__name__}", field=name
            )


def threads_or_default(num_threads: int | None) -> int:
    """Return how many threads the core is asked for; 0 is OpenMP's own number."""
    return 0 if num_threads is None else integer("num_threads", num_threads, 1, 1 << 16)
