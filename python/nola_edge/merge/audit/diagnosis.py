"""Find out what is wrong with merged weights that differ, whoever merged them.

A first pass over such a tensor measures all of it, and tries the usual mistakes on a sample of it.
What none of them explains is compared, on that sample again, with rarer ones.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import ops
from nola_edge.adapters.belongs import location
from nola_edge.dtypes import MERGEABLE
from nola_edge.merge.audit import faults, predictions
from nola_edge.merge.audit.block import read_block
from nola_edge.merge.audit.judged import judged_of, merged_by_name
from nola_edge.merge.audit.measure import Measurement
from nola_edge.merge.audit.other_layers import nearest_layers
from nola_edge.merge.blocks import runs_of
from nola_edge.merge.low_rank import needs_of, total_rank
from nola_edge.merge.result import Whole
from nola_edge.merge.stacks import matrix_name
from nola_edge.merge.windows import ANY, Window, strips, windows, work_bytes
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.input_file import InputFile, Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.audit.compare import Expected
    from nola_edge.merge.audit.report import Difference
    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.merged import Merged

    Found = Mapping[str, tuple[Source, TensorInfo]]

#: Of a window; some twenty arrays of float32 are made of it.
_ELEMENTS = 1 << 16
_ARRAYS_BYTES = 20 * 4
#: Columns that are whole blocks of any type.
_BLOCK_COLUMNS = 256
#: Windows of a tensor, spread over it, that predictions are tried on.
_SAMPLES = 4


def audit(
    plan: Expected,
    found: Mapping[str, tuple[InputFile, TensorInfo]],
    differences: list[Difference],
    num_threads: int | None,
    progress: Callable[[int], None],
) -> list[Difference]:
    """Say of tensors whose values differ how they do.

    Parameters
    ----------
    plan : Expected
        What a right merge gives.
    found : mapping
        Name -> file and entry of what there is.
    differences : list of Difference
    num_threads : int, optional
    progress : callable
        Called with the number of bytes measured since the last call.

    Returns
    -------
    list of Difference
        The same, those of values with a fault, and of merged tensors with all their fields.
    """
    right, parts = merged_by_name(plan), _found_by_name(plan, found, differences)
    names = [_name(d) for d in differences if d.problem == "values" and _name(d) in right]
    audited = _Audit(plan, right, parts, num_threads, progress)
    audited.measure(names)
    for name in names:
        audited.judge(name)
    audited.try_rarer([name for name in names if audited.may_be_rarer(name)])
    return [audited.said_of(d) if d.problem == "values" else d for d in differences]


def _name(difference: Difference) -> str:
    """Return the name of what is judged by itself."""
    if difference.matrix is None:
        return difference.name
    return matrix_name(difference.tensor, difference.matrix)


def _path_of(
    adapter: LowRankAdapter, weight: float, adapters: Iterable[tuple[LowRankAdapter, float]]
) -> str:
    """Return an adapter's path, with its weight if another of them has the same path."""
    path = str(location(adapter))
    alike = sum(str(location(other)) == path for other, _ in adapters)
    return f"{path}={weight:g}" if alike > 1 else path


def _found_by_name(plan: Expected, found: Found, differences: list[Difference]) -> Found:
    """Return file and entry of all that is judged by itself of tensors whose values differ."""
    names = dict.fromkeys(d.tensor for d in differences if d.problem == "values")
    parts = (judged_of(name, plan.result(name), found[name]) for name in names)
    return {part.name: part.found for of_tensor in parts for part in of_tensor}


class _Audit:
    """Measures tensors on several threads and tries explanations."""

    def __init__(
        self,
        plan: Expected,
        right: Mapping[str, Merged],
        found: Found,
        num_threads: int | None,
        progress: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._right = right
        self._found = found
        self._num_threads = num_threads
        self._progress = progress
        self._lock = threading.Lock()
        self.measured: dict[str, Measurement] = {}
        self.faults: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def measure(self, names: Iterable[str]) -> None:
        """Measure whole tensors, and try the usual mistakes on samples."""
        with Workers(self._num_threads) as workers:
            for name in names:
                result = self._right[name]
                self.measured[name] = Measurement(result.dtype)
                for update, window, sampled in self._windows(result):
                    work = partial(_quietly, self._measure, name, update, window, sampled)
                    workers.submit(work, nbytes=_memory(result, update, window))

    def try_rarer(self, names: list[str]) -> None:
        """Try the rarer mistakes on samples of tensors that are not explained."""
        self._sources = nearest_layers(self._right, self._found, names)
        with Workers(self._num_threads) as workers:
            for name in names:
                result = self._right[name]
                self.measured[name].sampled = 0
                for update, window, sampled in self._windows(result):
                    if sampled:
                        work = partial(_quietly, self._try_rarer, name, update, window)
                        workers.submit(work, nbytes=_memory(result, update, window))
        for name in names:
            faults.forget_same_part(self.measured[name], self._scaling_mistake(name))
            faults.forget_alike(self.measured[name])
            self.judge(name)

    def judge(self, name: str) -> None:
        """Name the fault of a tensor by what was measured so far."""
        self.faults[name] = faults.judge(self.measured[name], self._scaling_mistake(name))

    def may_be_rarer(self, name: str) -> bool:
        """Tell whether rarer mistakes may explain more of a tensor."""
        terms = len(self._right[name].terms)
        return faults.may_be_rarer(self.faults[name], self.measured[name], terms)

    def _scaling_mistake(self, name: str) -> faults.ScalingMistake | None:
        terms = self._right[name].terms
        return faults.rslora_mistake(terms) if needs_of(terms) == ANY else None

    def said_of(self, difference: Difference) -> Difference:
        """Return a difference with what was found out about it."""
        name = _name(difference)
        if name not in self.faults:
            brought = isinstance(self._plan.result(difference.tensor), Whole)
            return replace(difference, fault=faults.WHOLE if brought else faults.UNTOUCHED)
        measured, fault = self.measured[name], self.faults[name]
        adapters = self._adapters(name, fault)
        if adapters and fault == faults.DROPPED:
            fault = faults.ADAPTER_DROPPED
        if fault == faults.OVERFLOW and measured.dtype == "F16":
            fault = faults.FP16_OVERFLOW
        return replace(
            difference,
            part=measured.part,
            right_part=measured.right_part,
            factor=measured.factor,
            ulps=measured.largest if not measured.not_finite else math.inf,
            beyond=(measured.beyond + measured.not_finite) / measured.elements,
            unit=self._right[name].numbers.unit,
            fault=fault,
            source=self._sources.get(name) if fault == faults.ANOTHER_LAYER else None,
            adapters=adapters,
        )

    def _adapters(self, name: str, fault: str) -> tuple[str, ...]:
        """Return which adapters a mistake was made with, where it was not made with all."""
        terms = self._right[name].terms
        if fault == faults.SUBTRACTED and self._plan_is_opposite():
            return tuple(_path_of(*pair, self._plan.adapters) for pair in self._plan.adapters)
        if fault in faults.OF_SOME:
            terms = tuple(terms[n] for n in faults.some_of(fault, self.measured[name]))
        elif fault != faults.DROPPED or len(terms) == len(self._plan.adapters):
            return ()
        return tuple(_path_of(t.adapter, t.weight, self._plan.adapters) for t in terms)

    def _plan_is_opposite(self) -> bool:
        """Tell whether swapped weights subtract all, of two adapters with opposite ones."""
        weights = [weight for _, weight in self._plan.adapters]
        return len(weights) == 2 and weights[0] == -weights[1] != 0

    def _windows(self, result: Merged) -> Iterator[tuple[LowRank, Window, bool]]:
        """Yield the windows of a tensor, and whether each is of the sample."""
        info, most = result.info, _most_columns(result)
        columns = [
            (start, min(start + most, stop))
            for begin, stop in strips(info, total_rank(result.terms), needs_of(result.terms))
            for start in range(begin, stop, most)
        ]
        apart = -(-len(columns) // _SAMPLES)
        for place, cols in enumerate(columns):
            update = result.update(cols, self._num_threads)
            these = list(windows(info, [update], _ELEMENTS * info.nbytes // info.size))
            step = -(-len(these) * len(columns) // (apart * _SAMPLES))
            for number, window in enumerate(these):
                sampled = place % apart == 0 and number % step == min(step, len(these)) // 2
                yield update, window, sampled

    def _measure(self, name: str, update: LowRank, window: Window, sampled: bool) -> None:
        result = self._right[name]
        measured = Measurement(result.dtype)
        block = read_block(result, self._found[name], update, window)
        measured.add_block(block)
        if sampled:
            measured.add_predictions(block, predictions.usual(result, block, window, update))
        self._add(name, measured)
        self._progress(runs_of(self._found[name][1], window).nbytes)

    def _try_rarer(self, name: str, update: LowRank, window: Window) -> None:
        result = self._right[name]
        measured = Measurement(result.dtype)
        block = read_block(result, self._found[name], update, window)
        source = self._sources.get(name)
        other = None if source is None else self._right[source]
        factor = self.measured[name].factor
        measured.add_predictions(block, predictions.rarer(result, block, window, factor, other))
        self._add(name, measured)

    def _add(self, name: str, measured: Measurement) -> None:
        with self._lock:
            self.measured[name].add(measured)


def _most_columns(result: Merged) -> int:
    """Return how many columns a window has at most: whole blocks of a quantised type."""
    needs = needs_of(result.terms)
    if needs.rows:
        return result.shape[1]
    if needs.cols and result.dtype in MERGEABLE and result.info.dtype in MERGEABLE:
        return max(1, _ELEMENTS // result.shape[0])
    return _BLOCK_COLUMNS if needs.cols else _ELEMENTS


def _memory(result: Merged, update: LowRank, window: Window) -> int:
    """Return the bytes that measuring a window takes."""
    rows, cols = window.shape
    return work_bytes(result.info, update, window) + _ARRAYS_BYTES * rows * cols


def _quietly(work: Callable[..., None], *args: Any) -> None:
    """Do work in which infinite values are counted, in the environment of merges."""
    with np.errstate(all="ignore"):
        ops.in_specified_environment(partial(work, *args))
