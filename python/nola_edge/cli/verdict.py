"""What ``nola-edge verify`` says of weights that differ: a line of verdict and a table."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.cli.output import human_bytes
from nola_edge.errors import printable
from nola_edge.merge.audit import faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nola_edge.merge.audit.report import Difference, VerifyReport

_LISTED = 20
_HEADER = ("part", "{}s", ">1 {}", "cause", "tensor")
_GAP = "  "
#: Parts are shown to two digits.
_SHOWN = 0.005
_SAME = 0.1

#: Fault -> what is said of the tensors that have it.
_PHRASES = {
    faults.OVERFLOW: "infinite or NaN weights in {}",
    faults.FP16_OVERFLOW: "fp16 overflow in {}",
    faults.DROPPED: "{adapter} dropped from {}",
    faults.ADAPTER_DROPPED: "{adapter} dropped from {}",
    faults.WEIGHTS_SWAPPED: "the weights of {adapters} swapped in {}",
    faults.SUBTRACTED: "{adapter} subtracted in {}",
    faults.MERGED_TWICE: "merged twice in {}",
    faults.RSLORA_OFF: "scaled as if rsLoRA were off in {}",
    faults.RSLORA_ON: "scaled as if rsLoRA were on in {}",
    faults.DORA_OFF: "merged as if DoRA were off in {}",
    faults.SCALED: "scaled by {factor} in {}",
    faults.TRUNCATED: "truncated to BF16 instead of rounded in {}",
    faults.TRANSPOSED: "transposed in {}",
    faults.ANOTHER_LAYER: "another layer's factors in {}",
    faults.ROW_ORDER: "rows of attention heads in Hugging Face order in {}",
    faults.EXPERT_LAYOUT: "experts laid out otherwise (see --moe-layout) in {}",
    faults.BROKEN: "a few weights are broken in {}",
    faults.UNWANTED: "changes in {}, to which {adapter_adds} nothing",
    faults.UNKNOWN: "more than rounding, from an unknown mistake, in {}",
    faults.WHOLE: "wrong values in {} that the adapter replaces",
    faults.UNTOUCHED: "wrong values in {} that no adapter changes",
}
_HARMLESS = {
    faults.IMPRECISE: "right, but computed in another precision than fp32",
    faults.ADAPTER_ORDER: "right, but the adapters were summed in another order",
    faults.ROUNDED_TWICE: "right, but rounded twice",
    faults.ROUNDING: "the difference is rounding",
}
_FORMS = {
    "missing": "{} missing",
    "unexpected": "{} unexpected",
    "dtype": "{} of the wrong dtype",
    "shape": "{} of the wrong shape",
}


@dataclass(frozen=True)
class Verdict:
    """What to say of a report.

    Attributes
    ----------
    report : VerifyReport
    adapters : int
        How many were merged.
    ulps : int, optional
        By which merged weights may be off.
    """

    report: VerifyReport
    adapters: int = 1
    ulps: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether all is as it should be, to so many ulps."""
        return self.report.identical if self.ulps is None else self.report.within(self.ulps)

    @property
    def text(self) -> str | None:
        """Say in one line what is wrong with the tensors; None where nothing is known of them."""
        report = self.report
        counts = Counter(d.fault for d in report.differences if d.fault is not None)
        if not counts:
            return None
        said = [text for fault in _PHRASES for text in self._wrong(fault)]
        harmless = [text for fault, text in _HARMLESS.items() if counts[fault]]
        if said and harmless:
            roundings = sum(counts[fault] for fault in _HARMLESS)
            harmless = [f"only rounding in {self._tensors(roundings)}"]
        forms = Counter(d.problem for d in report.differences)
        said += harmless[:1]
        said += [text.format(_count(forms[form])) for form, text in _FORMS.items() if forms[form]]
        return "; ".join([*said, *self._swapped()])

    def lines(self, tensors_only: bool) -> list[str]:
        """Return what is printed."""
        rest = "; nothing else was compared" * tensors_only
        report = self.report
        compared = (
            f"{report.tensors} tensors ({report.merged} merged), {human_bytes(report.nbytes)}"
        )
        if report.identical:
            return [f"identical: {compared}, every bit as base and adapter give{rest}"]
        if not self.accepted:
            return list(self._differences())
        count, ulps = _differing(report), f"{self.ulps} {_unit(report.differences)}"
        ulps += "s" * (self.ulps != 1)
        first = f"the same within {ulps}: {compared}, {count} not identical{rest}"
        return [first, f"verdict: {self.text}"]

    def _differences(self) -> Iterator[str]:
        report = self.report
        measured = sorted((d for d in report.differences if d.measured), key=lambda d: d.harmless)
        tensors = [(d.name, d.detail) for d in report.differences if not d.measured]
        files = [(d.file, d.detail) for d in report.files]
        counts = [
            f"{count} {what}{'s' * (count > 1)}"
            for count, what in ((_differing(report), "tensor"), (len(files), "file"))
            if count
        ]
        yield f"DIFFERENT: {' and '.join(counts)}"
        if self.text is not None:
            yield f"verdict: {self.text}"
        if measured:
            yield from table(measured[:_LISTED])
        for name, detail in [*tensors[:_LISTED], *files[:_LISTED]]:
            yield f"  {printable(name)}: {detail}"
        more = sum(max(0, len(found) - _LISTED) for found in (measured, tensors, files))
        if more:
            yield f"  … and {more} more (all with --json)"

    def _swapped(self) -> Iterator[str]:
        """Say what may be in the place of what, where changes are subtracted."""
        found = [d for d in self.report.differences if d.fault == faults.SUBTRACTED]
        pairs = dict.fromkeys(_and(d.adapters) for d in found if d.adapters)
        files = len(found) == (self.report.weights or self.report.merged)
        places = [f"the weights of {pair}" for pair in pairs] + ["MERGED and BASE"] * files
        if places:
            yield f"perhaps {' or '.join(places)} are swapped"

    def _wrong(self, fault: str) -> Iterator[str]:
        """Say of each group of adapters with which a mistake was made where it was."""
        found = [d for d in self.report.differences if d.fault == fault]
        groups = _by_dropped(found) if fault == faults.ADAPTER_DROPPED else _by_adapters(found)
        for adapters, differences in groups:
            yield self._phrase(fault, adapters, differences)

    def _phrase(
        self, fault: str, adapters: tuple[str, ...], differences: Sequence[Difference]
    ) -> str:
        merged = fault not in (faults.WHOLE, faults.UNTOUCHED)
        count, one = len(differences), self.adapters == 1
        whose = _and(adapters) or ("the adapter" if one else "the adapters")
        return _PHRASES[fault].format(
            self._tensors(count) if merged else _count(count, *self._noun),
            adapter=f"{whose} {'was' if one or len(adapters) == 1 else 'were'}",
            adapter_adds="the adapter adds" if one else "the adapters add",
            adapters=whose,
            factor=_common([d.factor for d in differences]) or "various factors",
        )

    @property
    def _noun(self) -> tuple[str, str]:
        parts = self.report.weights > self.report.merged
        return ("matrix", "matrices") if parts else ("tensor", "tensors")

    def _tensors(self, count: int) -> str:
        merged = self.report.weights or self.report.merged
        whole = _count(merged, *self._noun)
        return f"all {whole}" if count == merged > 1 else f"{count} of {whole}"


def _by_adapters(
    differences: Sequence[Difference],
) -> Iterable[tuple[tuple[str, ...], list[Difference]]]:
    """Return what differs in groups with the same adapters."""
    found: dict[tuple[str, ...], list[Difference]] = {}
    for difference in differences:
        found.setdefault(difference.adapters, []).append(difference)
    return found.items()


def _by_dropped(
    differences: Sequence[Difference],
) -> Iterator[tuple[tuple[str, ...], list[Difference]]]:
    """Yield adapters that are dropped from the same tensors, and what differs there."""
    places: dict[str, list[int]] = {}
    for number, difference in enumerate(differences):
        for adapter in difference.adapters:
            places.setdefault(adapter, []).append(number)
    for place in dict.fromkeys(map(tuple, places.values())):
        adapters = tuple(adapter for adapter, found in places.items() if tuple(found) == place)
        yield adapters, [differences[number] for number in place]


def _and(adapters: Sequence[str]) -> str:
    return " and ".join(printable(path) for path in adapters)


def table(differences: Sequence[Difference]) -> Iterator[str]:
    """Lay out what was measured of tensors, the name last, so that a long one can be wrapped."""
    unit = _unit(differences)
    rows = [tuple(title.format(unit) for title in _HEADER), *map(_row, differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    for row, difference in zip(rows, [None, *differences], strict=True):
        *numbers, cause, tensor = row
        cells = [f"{text:>{width}}" for text, width in zip(numbers, widths, strict=False)]
        yield _GAP + _GAP.join([*cells, f"{cause:{widths[-1]}}", tensor])
        if difference is not None and difference.source is not None:
            yield f"    with the change meant for {printable(difference.source)}"


def _differing(report: VerifyReport) -> int:
    """Return how many tensors differ."""
    return len({difference.tensor for difference in report.differences})


def _unit(differences: Sequence[Difference]) -> str:
    """Return what tensors are measured in: ulps, steps of quantised types, or some in each."""
    return "/".join(dict.fromkeys(difference.unit for difference in differences))


def _common(factors: list[float]) -> str | None:
    """Return what factors are that hardly differ."""
    low, middle, high = min(factors), sorted(factors)[len(factors) // 2], max(factors)
    return f"{middle:.2g}" if high - low <= _SAME * abs(middle) else None


def _count(number: int, one: str = "tensor", many: str = "tensors") -> str:
    return f"{number} {one if number == 1 else many}"


def _row(difference: Difference) -> tuple[str, ...]:
    return (
        _part(difference),
        f"{difference.ulps:.3g}",
        _beyond(difference),
        _cause(difference),
        printable(difference.name),
    )


def _part(difference: Difference) -> str:
    """Say the part that is there, and that of a right merge where it is another than 1."""
    part, right = difference.part, difference.right_part
    if math.isnan(part):
        return "-"
    return _rounded(part) + (f" of {_rounded(right)}" if abs(right - 1) > _SHOWN else "")


def _rounded(part: float) -> str:
    text = f"{part:.2f}"
    return "0.00" if text == "-0.00" else text


def _beyond(difference: Difference) -> str:
    percent = 100 * difference.beyond
    if 0 < percent < 0.01:
        return "<0.01%"
    return f"{percent:.3g}%" if percent < 99.95 else "100%" if percent == 100 else "99.9%"


def _cause(difference: Difference) -> str:
    fault = str(difference.fault)
    scaled = f"scaled by {difference.factor:.2g}"
    return scaled if fault == faults.SCALED else fault
