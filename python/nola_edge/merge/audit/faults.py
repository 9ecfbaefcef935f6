"""Tell by which mistake a weight came to be what it is.

Each mistake predicts values. The one that was made predicts nearly every element to the bit, and
the others miss wherever they differ from it by an ulp or more. So predictions are rounded as a
merge rounds, and compared element by element; a name is given only where one of them is clearly
better than all others on elements that tell them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.merge.audit.block import change_of
from nola_edge.merge.audit.measure import IMPRECISION
from nola_edge.merge.low_rank import total_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nola_edge.merge.audit.block import Block, Floats
    from nola_edge.merge.audit.measure import Measurement
    from nola_edge.merge.low_rank import RowUpdate, Term

    Prediction = tuple[str, Floats]
    Rounding = Callable[[Floats], Floats]

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
_STEP = 0.1
#: A change of more than this, up or down, may be one of the scaling.
_SLIGHT = 0.02
_LESS, _MORE = "less than ", "more than "


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


def usual_predictions(block: Block, mistake: tuple[str, float] | None) -> Iterator[Prediction]:
    """Yield what a right merge gives for a window, and what mistakes in its scaling do."""
    yield ROUNDING, block.right
    yield f"{MERGED_TWICE}: one after the other", block.rounded(block.right + block.change)
    for name, part in [*PARTS.items(), *([mistake] if mistake else [])]:
        yield from scaled_predictions(block, name, part)


def scaled_predictions(block: Block, name: str, part: float) -> Iterator[Prediction]:
    """Yield what some multiple of the change gives for a window, and what a bit less and more do.

    Where the change is small, many elements agree whatever the multiple is; whether it is the best
    shows in its neighbours.
    """
    step = _STEP * (abs(part) or 1)
    for key, factor in ((name, part), (_LESS + name, part - step), (_MORE + name, part + step)):
        yield key, block.rounded(block.base + np.float32(factor) * block.change)


def twice_rounded(
    block: Block, updates: Sequence[RowUpdate], rows: tuple[int, int]
) -> Iterator[Prediction]:
    """Yield what merges give for a window that round more than the result.

    The sum of all changes, or, of one adapter after the other: nothing else, the change, the
    product before its scaling, or the factors too.

    Parameters
    ----------
    block : Block
    updates : sequence of RowUpdate
        Of each adapter alone.
    rows : (start, stop)
        Of the window.
    """
    factors = [(update.left(*rows), update.right, update.scaling) for update in updates]
    if len(updates) > 1:
        one_by_one = _one_after_the_other(block.base, factors, change_of, block.rounded)
        yield f"{ROUNDED_TWICE}: nothing else", one_by_one
    for number, half in enumerate(block.intermediate):
        yield f"{ROUNDED_TWICE}: sum {number}", block.rounded(block.base + half(block.change))
        for name, way in _ways(half).items():
            weight = _one_after_the_other(block.base, factors, way, half)
            yield f"{ROUNDED_TWICE}: {name} {number}", block.rounded(weight)


def _ways(half: Rounding) -> dict[str, Callable[[Floats, Floats, float], Floats]]:
    """Return how a program makes the change of an adapter that rounds on the way."""
    return {
        "weight": change_of,
        "change": lambda *given: half(change_of(*given)),
        "product": lambda b, a, s: half(np.float32(s) * half(change_of(b, a, 1.0))),
        "factors": lambda b, a, s: half(np.float32(s) * half(change_of(half(b), half(a), 1.0))),
    }


def _one_after_the_other(
    weight: Floats,
    factors: Sequence[tuple[Floats, Floats, float]],
    way: Callable[[Floats, Floats, float], Floats],
    rounded: Rounding,
) -> Floats:
    for given in factors:
        weight = rounded(weight + way(*given))
    return weight


def predictions_of_dora(block: Block, product: Floats) -> Iterator[Prediction]:
    """Yield what is merged twice rounded, and what is without magnitudes, for a window."""
    yield ROUNDED_TWICE, block.rounded(block.base + block.rounded(block.change))
    yield DORA_OFF, block.rounded(block.base + product)


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
    same = [name for name, part in parts if part and abs(part - factor) <= _STEP * abs(factor)]
    for key in list(measured.errors):
        if key.partition(":")[0] in same:
            del measured.errors[key]


def _least_errors(measured: Measurement) -> dict[str, float]:
    """Return the error of each mistake, in the way of making it that explains most."""
    least: dict[str, float] = {}
    for key, error in measured.errors.items():
        name = key.partition(":")[0]
        if not name.startswith((_LESS, _MORE)):
            least[name] = min(error, least.get(name, math.inf))
    return least


def _is_certain(fault: str, errors: dict[str, float], measured: Measurement) -> bool:
    """Tell whether a mistake explains clearly more than others, and its part than others."""
    error = errors[fault]
    neighbours = [measured.errors.get(sign + fault, math.inf) for sign in (_LESS, _MORE)]
    others = [other for name, other in errors.items() if name != fault]
    return error <= min(neighbours) and all(_clearly(error, other) for other in others)


def _is_there(error: float, errors: dict[str, float], measured: Measurement) -> bool:
    """Tell whether a change with some error is nevertheless the wanted one, and all of it."""
    return error * _CLEARLY <= errors[DROPPED] and not abs(measured.factor - 1) > _STEP


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
