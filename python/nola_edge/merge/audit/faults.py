"""Tell by which mistake a weight came to be what it is.

Each mistake predicts values. The one that was made predicts nearly every element to the bit, and
the others miss wherever they differ from it by an ulp or more. So predictions are rounded as a
merge rounds, and compared element by element; a name is given only where one of them is clearly
better than all others on elements that tell them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.merge.audit.measure import IMPRECISION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nola_edge.merge.audit.measure import Measurement
    from nola_edge.merge.low_rank import Term


ROUNDING = "rounding"
ROUNDED_TWICE = "rounded twice"
#: Where several adapters are merged: they were summed in another order.
ADAPTER_ORDER = "adapter order"
DROPPED = "dropped"
SUBTRACTED = "subtracted"
MERGED_TWICE = "merged twice"
#: Where several adapters are merged: some are not there, or two have each other's weights.
ADAPTER_DROPPED = "adapter dropped"
WEIGHTS_SWAPPED = "weights swapped"
RSLORA_OFF = "rsLoRA off"
RSLORA_ON = "rsLoRA on"
DORA_OFF = "DoRA off"
SCALED = "scaled"
#: To BF16, instead of rounded.
TRUNCATED = "truncated"
TRANSPOSED = "transposed"
ANOTHER_LAYER = "another layer"
ROW_ORDER = "row order"
EXPERT_LAYOUT = "expert layout"
OVERFLOW = "not finite"
FP16_OVERFLOW = "fp16 overflow"
BROKEN = "broken weights"
IMPRECISE = "imprecise"
#: Of weights to which the adapters add nothing, for example because their scaling is 0.
UNWANTED = "unwanted"
UNKNOWN = "unknown"
#: Of tensors that are not merged into: one that an adapter brings, and one that none changes.
WHOLE = "whole tensor"
UNTOUCHED = "untouched"

#: The part of the change that each of some mistakes leaves; others depend on the adapter.
PARTS = {DROPPED: 0.0, SUBTRACTED: -1.0, MERGED_TWICE: 2.0}
#: Mistakes that are made with some of several adapters; see :func:`key_of_some`.
OF_SOME = (ADAPTER_DROPPED, WEIGHTS_SWAPPED)
#: Faults that leave the weight right but for roundings.
HARMLESS = (ROUNDING, ROUNDED_TWICE, ADAPTER_ORDER, IMPRECISE)

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
#: A mistake that leaves another part of the change than was found, by more than this, is not it.
_NEAR = 0.25
#: A change of more than this, up or down, may be one of the scaling.
_SLIGHT = 0.02
#: What predictions of a bit less and a bit more than a mistake are called before its name.
BESIDE = ("less than ", "more than ")


class ScalingMistake(NamedTuple):
    """What a wrong use of rsLoRA makes of a change.

    Attributes
    ----------
    fault : str
    parts : tuple of float
        What is left of the change of each term.
    """

    fault: str
    parts: tuple[float, ...]

    @property
    def part(self) -> float | None:
        """Return what is left of the whole change; None where that differs between the terms."""
        first = self.parts[0]
        return first if all(math.isclose(part, first) for part in self.parts) else None


def rslora_mistake(terms: Sequence[Term]) -> ScalingMistake | None:
    """Return what a wrong use of rsLoRA would be.

    None where it would change nothing, or the terms' adapters do not agree in it.
    """
    parts = tuple(map(_mistaken_part, terms))
    faults = {RSLORA_OFF if part < 1 else RSLORA_ON for part in parts if part != 1}
    return ScalingMistake(faults.pop(), parts) if len(faults) == 1 else None


def _mistaken_part(term: Term) -> float:
    """Return the part of a term's change that a wrong use of rsLoRA leaves."""
    scaling = term.adapter.scaling_of(term.module)
    mistaken = term.adapter.mistaken_scaling(term.module)
    return mistaken / scaling if scaling and mistaken is not None else 1.0


def key_of_some(fault: str, terms: Iterable[int]) -> str:
    """Return the key of a prediction that a mistake was made with some of a weight's terms."""
    return f"{fault}: {' '.join(map(str, terms))}"


def some_of(fault: str, measured: Measurement) -> tuple[int, ...]:
    """Return the terms with which a mistake was made, by the prediction that explains most."""
    errors = {k: e for k, e in measured.errors.items() if k.partition(":")[0] == fault}
    return tuple(sorted(_fault_and_terms(min(errors, key=lambda key: errors[key]))[1]))


def judge(measured: Measurement, mistake: ScalingMistake | None) -> str:
    """Name the mistake that explains a weight.

    Parameters
    ----------
    measured : Measurement
    mistake : ScalingMistake, optional
        What a wrong use of rsLoRA would make of it.

    Returns
    -------
    str
        A constant of this module; :data:`UNKNOWN` unless one is certain.
    """
    if measured.not_finite:
        return OVERFLOW
    errors = _least_errors(measured)
    nearly_right = _of_nearly_right(errors)
    if errors[DROPPED] == 0 and nearly_right >= _ENOUGH:
        return DROPPED  # whatever else would have left the base as it is
    fault = min(errors, key=lambda name: errors[name])
    most = max(_AVERAGE_ULPS, _AVERAGE * measured.roundings)
    small = _average(errors[fault], measured) <= most
    if small and fault not in HARMLESS and _is_certain(fault, errors, measured):
        return fault if _leaves_its_part(fault, measured, mistake) else UNKNOWN
    is_there = small and fault in (*HARMLESS, SCALED) and _is_there(nearly_right, errors, measured)
    if is_there or nearly_right < _ENOUGH:
        return _rounding(errors, measured)
    if _is_imprecise(errors, measured):
        return IMPRECISE
    return UNKNOWN if measured.wanted else UNWANTED


def may_be_rarer(fault: str, measured: Measurement, terms: int) -> bool:
    """Tell whether rarer mistakes may explain more than the fault that was found.

    Of several terms one that is small may be all that is there, and in F32 the order may tell.
    """
    if fault in HARMLESS and abs(measured.factor - 1) > _SLIGHT:
        return True
    if terms > 1 and (fault == DROPPED or (fault == ROUNDING and measured.dtype == "F32")):
        return True
    return fault in (UNKNOWN, UNWANTED, IMPRECISE, BROKEN)


def forget_same_part(measured: Measurement, mistake: ScalingMistake | None) -> None:
    """Have no mistake compete with :data:`SCALED` that leaves about the same part of the change."""
    factor = measured.factor
    parts = _parts(mistake).items()
    same = [name for name, part in parts if part and abs(part - factor) <= STEP * abs(factor)]
    for key in list(measured.errors):
        if key.partition(":")[0] in same:
            del measured.errors[key]


def _parts(mistake: ScalingMistake | None) -> dict[str, float]:
    """Return the part of the change that is left by each mistake that leaves a certain one."""
    if mistake is None or mistake.part is None:
        return PARTS
    return PARTS | {mistake.fault: mistake.part}


def _leaves_its_part(fault: str, measured: Measurement, mistake: ScalingMistake | None) -> bool:
    """Tell whether the part of the change that was found is not quite another.

    Of a change far below a step few elements show anything, and those by chance.
    """
    part = _parts(mistake).get(fault)
    return part is None or not abs(measured.factor - part) > _NEAR


def forget_alike(measured: Measurement) -> None:
    """Have no mistake with some of the adapters compete that is no better than another.

    Adapters may be alike, or one nearly all of the change: then dropping this or that one explains
    the same, or a scaling does. Those are certain whom every good explanation leaves out.
    """
    errors = measured.errors
    found = {key: errors.pop(key) for key in list(errors) if key.partition(":")[0] in OF_SOME}
    if not found:
        return
    error = min(found.values())
    alike = [_fault_and_terms(key) for key, other in found.items() if not _clearly(error, other)]
    if SCALED in errors and not _clearly(error, errors[SCALED]):
        return
    certain = frozenset.intersection(*(terms for _, terms in alike))
    if len(alike) == 1 or (certain and {fault for fault, _ in alike} == {ADAPTER_DROPPED}):
        errors[key_of_some(alike[0][0], sorted(certain))] = error


def _fault_and_terms(key: str) -> tuple[str, frozenset[int]]:
    """Take a key of :func:`key_of_some` apart."""
    fault, _, terms = key.partition(": ")
    return fault, frozenset(map(int, terms.split()))


def _least_errors(measured: Measurement) -> dict[str, float]:
    """Return the error of each mistake, in the way of making it that explains most."""
    least: dict[str, float] = {}
    for key, error in measured.errors.items():
        name = key.partition(":")[0]
        if not name.startswith(BESIDE):
            least[name] = min(error, least.get(name, math.inf))
    return least


def _of_nearly_right(errors: dict[str, float]) -> float:
    """Return the least error of what is right but for roundings."""
    return min(error for name, error in errors.items() if name in HARMLESS)


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
    nearly_right = _of_nearly_right(errors)
    there = measured.residual <= IMPRECISION**2 * measured.wanted
    if measured.stray or measured.is_systematic:
        return False
    return there or _is_there(nearly_right, errors, measured)


def _rounding(errors: dict[str, float], measured: Measurement) -> str:
    """Tell roundings apart, and from elements that none explains."""
    if measured.stray:
        return BROKEN
    found = min((ROUNDED_TWICE, ADAPTER_ORDER), key=lambda name: errors.get(name, math.inf))
    if _clearly(errors[found], errors[ROUNDING]):
        return found
    if measured.is_systematic:
        return UNKNOWN
    average = _average(errors[ROUNDING], measured)
    if measured.largest <= max(measured.roundings, _TIMES_AVERAGE * average):
        return ROUNDING
    few = measured.differing <= _FEW * measured.elements
    return BROKEN if few and measured.largest > _BROKEN_ULPS else IMPRECISE
