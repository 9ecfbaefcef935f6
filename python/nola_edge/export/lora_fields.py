"""The fields of PEFT's LoRA configuration that matter to its weights."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.patterns import PatternTable
from nola_edge.adapters.peft_fields import is_alpha
from nola_edge.errors import ArgumentError
from nola_edge.export.alpha import alpha_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def lora_fields(
    *,
    r: int,
    lora_alpha: float,
    target_modules: Iterable[str],
    fan_in_fan_out: bool = False,
    bias: str = "none",
    modules_to_save: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a LoRA with one rank and one scaling.

    The scaling is always lora_alpha / r (:mod:`nola_edge.export.alpha`).

    Raises
    ------
    ArgumentError
        If lora_alpha is larger than any that is read again.
    """
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": _shortest(_readable(lora_alpha)),
        "use_rslora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "lora_dropout": 0.0,
        "bias": bias,
        "target_modules": sorted(target_modules),
        "modules_to_save": list(modules_to_save) or None,
    }


def fields_of_modules(modules: Mapping[str, tuple[int, float]], **options: Any) -> dict[str, Any]:
    """Return the fields of a LoRA whose modules have ranks and scalings of their own.

    Parameters
    ----------
    modules : mapping
        Module name -> (rank, scaling).
    **options
        ``fan_in_fan_out``, ``bias`` and ``modules_to_save`` of :func:`lora_fields`.

    Raises
    ------
    ArgumentError
        As for :func:`lora_fields`.
    """
    ranks = {name: rank for name, (rank, _) in modules.items()}
    alphas = {name: _readable(alpha_of(s, rank)) for name, (rank, s) in modules.items()}
    r, lora_alpha = _most_common(ranks), _most_common(alphas)
    fields = lora_fields(r=r, lora_alpha=lora_alpha, target_modules=modules, **options)
    fields["rank_pattern"] = _pattern(ranks, r)
    fields["alpha_pattern"] = _pattern(alphas, lora_alpha)
    return fields


def _readable(alpha: float) -> float:
    if not is_alpha(alpha):
        raise ArgumentError(
            f"would be {alpha:g}, and no more than 1e30 is read again; give the adapter a smaller "
            "weight",
            field="lora_alpha",
            value=alpha,
        )
    return alpha


def _shortest(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return patterns that give each module its value, in whatever order they are tried.

    Names themselves will do, unless one is the end of another: then they are anchored.
    """
    plain = {name: value for name, value in values.items() if value != default}
    if all(re.fullmatch(r"[\w.-]+", name) for name in plain):
        tables = [PatternTable({n: plain[n] for n in order}, default) for order in _orders(plain)]
        if all(table[name] == value for table in tables for name, value in values.items()):
            return plain
    return {f"^{re.escape(name)}": value for name, value in plain.items()}


def _orders(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return two orders in which of any two names each comes first once."""
    return sorted(names), sorted(names, reverse=True)
