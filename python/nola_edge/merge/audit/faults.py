"""Tell by which mistake a weight came to be what it is.

Each mistake predicts values. The one that was made predicts nearly every element to the bit, and
the others miss wherever they differ from it by an ulp or more. So predictions are rounded as a
merge rounds, and compared element by element; a name is given only where one of them is clearly
better than all others on elements that tell them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nola_edge.merge.audit.measure import IMPRECISION
from nola_edge.merge.low_rank import total_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nola_edge.merge.audit.measure import Measurement
    from nola_edge.merge.low_rank import Term


ROUNDING = "rounding"
ROUNDED_TWICE = "rounded twice"
DROPPED = "dropped"
SUBTRACTED = "subtracted"
MERGED_TWICE = "merged twice"
RSLORA_OFF = "rsLoRA off"
RSLORA_ON = "rsLoRA on"
DORA_OFF = "DoRA off"
SCALED = "scaled"
TRANSPOSED = "transposed"
ANOTHER_LAYER = "another layer"
ROW_ORDER = "row order"
OVERFLOW = "not finite"
FP16_OVERFLOW = "fp16 overflow"
BROKEN = "broken weights"
IMPRECISE = "imprecise"
UNKNOWN = "unknown"
#: Of tensors that are not merged into: one that an adapter brings, and one that none changes.
WHOLE = "whole tensor"
UNTOUCHED = "untouched"

#: The part of the change that each of some mistakes leaves; others depend on the adapter.
PARTS = {DROPPED: 0.0, SUBTRACTED: -1.0, MERGED_TWICE: 2.0}
#: Faults that leave the weight right but for roundings.
HARMLESS = (ROUNDING, ROUNDED_TWICE, IMPRECISE)

#: A prediction is clearly better if its squared error is this much smaller …
_CLEARLY = 4.0
#: … and the other misses at least so many elements by an ulp.
_ENOUGH = 16.0
#: Roundings leave no more on the average than this part of what they may leave at most …
_AVERAGE = 0.25
_AVERAGE_ULPS = 1.0
#: … or than an ulp, and no element much more than the others.
_TIMES_AVERAGE = 12.0
#: Imprecise arithmetic would show in a larger share of the elements.
_FEW = 0.01
_BROKEN_ULPS = 64.0
#: Parts of the change as near to each other as this are not told apart.
STEP = 0.1
#: A change of more than this, up or down, may be one of the scaling.
_SLIGHT = 0.02
#: What predictions of a bit less and a bit more than a mistake are called before its name.
BESIDE = ("less than ", "more than ")


def rslora_mistake(terms: Sequence[Term]) -> tuple[str, float] | None:
    """Return what a wrong use of rsLoRA would be, and the part of the change that it leaves.

    None where the terms' adapters do not agree in it, or their ranks make no difference.
    """
    mistakes = set()
    for term in terms:
        root = math.sqrt(total_rank((term,)))
        used = getattr(getattr(term.adapter, "config", None), "use_rslora", False)
        mistakes.add((RSLORA_OFF, 1 / root) if used else (RSLORA_ON, root))
    mistake = mistakes.pop()
    return None if mistakes or mistake[1] == 1 else mistake


def judge(measured: Measurement) -> str:
    """Name the mistake that explains a weight.

    Returns
    -------
    str
        A constant of this module; :data:`UNKNOWN` unless one is certain.
    """
    if measured.not_finite:
        return OVERFLOW
    errors = _least_errors(measured)
    nearly_right = min(errors[ROUNDING], errors[ROUNDED_TWICE])
    if errors[DROPPED] == 0 and nearly_right >= _ENOUGH:
        return DROPPED  # whatever else would have left the base as it is
    fault = min(errors, key=lambda name: errors[name])
    most = max(_AVERAGE_ULPS, _AVERAGE * measured.roundings)
    small = _average(errors[fault], measured) <= most
    if small and fault not in HARMLESS and _is_certain(fault, errors, measured):
        return fault
    if small and fault in (*HARMLESS, SCALED) and _is_there(nearly_right, errors, measured):
        return _rounding(errors, measured)
    if nearly_right < _ENOUGH:
        return _rounding(errors, measured)
    return IMPRECISE if _is_imprecise(errors, measured) else UNKNOWN


def may_be_rarer(fault: str, measured: Measurement) -> bool:
    """Tell whether rarer mistakes may explain more than the fault that was found."""
    if fault in HARMLESS and abs(measured.factor - 1) > _SLIGHT:
        return True
    return fault in (UNKNOWN, IMPRECISE, BROKEN)


def forget_same_part(measured: Measurement, mistake: tuple[str, float] | None) -> None:
    """Have no mistake compete with :data:`SCALED` that leaves about the same part of the change."""
    parts = [*PARTS.items(), *([mistake] if mistake else [])]
    factor = measured.factor
    same = [name for name, part in parts if part and abs(part - factor) <= STEP * abs(factor)]
    for key in list(measured.errors):
        if key.partition(":")[0] in same:
            del measured.errors[key]


def _least_errors(measured: Measurement) -> dict[str, float]:
    """Return the error of each mistake, in the way of making it that explains most."""
    least: dict[str, float] = {}
    for key, error in measured.errors.items():
        name = key.partition(":")[0]
        if not name.startswith(BESIDE):
            least[name] = min(error, least.get(name, math.inf))
    return least


def _is_certain(fault: str, errors: dict[str, float], measured: Measurement) -> bool:
    """Tell whether a mistake explains clearly more than others, and its part than others."""
    error = errors[fault]
    neighbours = [measured.errors.get(sign + fault, math.inf) for sign in BESIDE]
    others = [other for name, other in errors.items() if name != fault]
    return error <= min(neighbours) and all(_clearly(error, other) for other in others)


def _is_there(error: float, errors: dict[str, float], measured: Measurement) -> bool:
    """Tell whether a change with some error is nevertheless the wanted one, and all of it."""
    return error * _CLEARLY <= errors[DROPPED] and not abs(measured.factor - 1) > STEP


def _clearly(error: float, other: float) -> bool:
    return other >= _ENOUGH and error * _CLEARLY <= other


def _average(error: float, measured: Measurement) -> float:
    return math.sqrt(error / max(1, measured.sampled))


def _is_imprecise(errors: dict[str, float], measured: Measurement) -> bool:
    """Tell whether the change is there, and no element is further off than bfloat16 makes it."""
    nearly_right = min(errors[ROUNDING], errors[ROUNDED_TWICE])
    there = measured.residual <= IMPRECISION**2 * measured.wanted
    return measured.stray == 0 and (there or nearly_right * _CLEARLY <= errors[DROPPED])


def _rounding(errors: dict[str, float], measured: Measurement) -> str:
    """Tell roundings apart, and from elements that none explains."""
    if measured.stray:
        return BROKEN
    if _clearly(errors[ROUNDED_TWICE], errors[ROUNDING]):
        return ROUNDED_TWICE
    average = _average(errors[ROUNDING], measured)
    if measured.largest <= max(measured.roundings, _TIMES_AVERAGE * average):
        return ROUNDING
    few = measured.differing <= _FEW * measured.elements
    return BROKEN if few and measured.largest > _BROKEN_ULPS else IMPRECISE
