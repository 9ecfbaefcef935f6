"""Adapters with weights, as a caller may give them, and weights that do not do what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments
from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.belongs import location
from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.errors import ArgumentError, printable, warn

if TYPE_CHECKING:
    pass

_MAX_SCALING = float(np.finfo(np.float32).max)
#: How many whole tensors a warning names.
_LISTED = 3


def weighted(given: Any, kinds: type | tuple[type, ...], wanted: str) -> list[tuple[Any, float]]:
    """Return pairs (adapter, weight) of what a caller may give for one or for several.

    Parameters
    ----------
    given : object
        One adapter, or an iterable of adapters or of pairs (adapter, weight), or a mapping from
        adapters to weights.
    kinds : type or tuple of types
        What an adapter is given as.
    wanted : str
        What it is not if it is of no such type, for the message.

    Raises
    ------
    ArgumentError
        If an adapter is of another type, a weight is not a number, or they come in no order, on
        which the bits of a sum depend.
    """
    if isinstance(given, set | frozenset):
        raise ArgumentError(
            f"is a {type(given).__name__}, which has no order, and the bits of a sum depend on the "
            "order; give a list",
            field="adapter",
        )
    if isinstance(given, kinds) or not isinstance(given, Iterable):
        given = [given]
    items = given.items() if isinstance(given, Mapping) else given
    return [_pair(item, kinds, wanted) for item in items]


def _pair(item: Any, kinds: type | tuple[type, ...], wanted: str) -> tuple[Any, float]:
    if isinstance(item, tuple) and len(item) != 2:
        raise ArgumentError(
            f"{printable(repr(item))} is not a pair (adapter, weight)", field="adapter"
        )
    adapter, weight = item if isinstance(item, tuple) else (item, 1.0)
    if not isinstance(adapter, kinds):
        raise ArgumentError(
            f"{printable(repr(adapter))} is {wanted}; a weight belongs in a pair with its adapter, "
            "[(adapter, 0.5)]",
            field="adapter",
        )
    return adapter, _weight(adapter, weight)


def _weight(adapter: Any, weight: Any) -> float:
    try:
        if not isinstance(weight, int | float | np.integer | np.floating):
            raise arguments.wrong_type("weight", weight, "a number")
        return arguments.number("weight", weight)
    except ArgumentError as error:
        error.file = location(adapter) if isinstance(adapter, LowRankAdapter) else adapter
        raise


def check_weight(adapter: LowRankAdapter, weight: float) -> None:
    """Refuse a weight that is too large, and warn of one that does not do what was meant.

    Raises
    ------
    ArgumentError
        If the weight times a scaling of the adapter is not a finite float32.

    Warns
    -----
    NolaEdgeWarning
        If the factors are multiplied by 0, or the weight leaves whole tensors as they are.
    """
    scaling = max(map(adapter.scaling_of, adapter.modules), key=abs)
    if not abs(weight * scaling) <= _MAX_SCALING:
        raise ArgumentError(
            f"{weight} times the adapter's scaling {scaling:g} is not a finite float32",
            file=location(adapter),
            field="weight",
        )
    where, found = location(adapter), _unmeant(adapter, weight, scaling)
    if found.startswith("lora_alpha") and where.is_dir():
        where /= CONFIG_NAME
    if found:
        warn(f"{printable(where, 240)}: {found}")


def _unmeant(adapter: LowRankAdapter, weight: float, scaling: float) -> str:
    """Say what a weight, or a largest scaling, does that was probably not meant; or nothing."""
    whole = _whole_tensors(adapter)
    if np.float32(weight * scaling):
        if weight == 1 or not whole:
            return ""
        return f"weight: {weight:g} is for its factors alone; its {whole} the base's as a whole"
    if not weight:
        found = "weight: is 0"
    elif not scaling:
        found = "lora_alpha: is 0 for all modules"
    else:
        found = f"weight: {weight} times the scaling {scaling:g} is 0 in float32"
    if whole:
        return (
            f"{found}, so its factors add nothing to any weight, but its {whole} the base's all "
            "the same; correct that"
        )
    return (
        f"{found}, so its factors add nothing to any weight; correct that, or leave the adapter out"
    )


def _whole_tensors(adapter: LowRankAdapter) -> str:
    """Name the tensors that an adapter has whole, with a verb; nothing where there are none."""
    names = list(adapter.whole_tensors)
    if not names:
        return ""
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    if len(names) > _LISTED:
        shown += f" and {len(names) - _LISTED} more"
    return f"{shown} {'replaces' if len(names) == 1 else 'replace'}"
