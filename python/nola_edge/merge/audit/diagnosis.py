"""Find out what is wrong with merged weights that differ, whoever merged them.

A first pass over such a tensor measures all of it, and tries the usual mistakes on a sample of it.
What none of them explains is compared, on that sample again, with rarer ones.
"""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.errors import NotFiniteError
from nola_edge.merge.audit import faults
from nola_edge.merge.audit.measure import Block, Measurement
from nola_edge.merge.audit.other_layers import change_in, nearest_layers, read_window
from nola_edge.merge.blocks import apply_update, runs_of
from nola_edge.merge.low_rank import make_update, needs_of, total_rank
from nola_edge.merge.windows import ANY, Window, strips, windows, work_bytes
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.audit.faults import Prediction
    from nola_edge.merge.audit.report import Difference
    from nola_edge.merge.low_rank import Update
    from nola_edge.merge.plan import MergePlan

    Found = Mapping[str, tuple[InputFile, TensorInfo]]

#: Of a window; some twenty arrays of float32 are made of it.
_ELEMENTS = 1 << 16
_ARRAYS_BYTES = 20 * 4
#: Windows of a tensor, spread over it, that predictions are tried on.
_SAMPLES = 4


def audit(
    plan: MergePlan,
    found: Found,
    differences: list[Difference],
    num_threads: int | None,
    progress: Callable[[int], None],
) -> list[Difference]:
    """Say of tensors whose values differ how they do.

    Parameters
    ----------
    plan : MergePlan
        What a right merge does.
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
    names = [d.tensor for d in differences if d.problem == "values" and d.tensor in plan.merges]
    audited = _Audit(plan, found, num_threads, progress)
    audited.measure(names)
    for name in names:
        audited.faults[name] = faults.judge(audited.measured[name])
    audited.try_rarer(
        [n for n in names if faults.may_be_rarer(audited.faults[n], audited.measured[n])]
    )
    return [audited.said_of(d) if d.problem == "values" else d for d in differences]


class _Audit:
    """Measures tensors on several threads and tries explanations."""

    def __init__(
        self,
        plan: MergePlan,
        found: Found,
        num_threads: int | None,
        progress: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._found = found
        self._num_threads = num_threads
        self._progress = progress
        self._lock = threading.Lock()
        self.measured: dict[str, Measurement] = {}
        self.faults: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def measure(self, names: Iterable[str]) -> None:
        """Measure whole tensors, and try the usual mistakes on samples."""
        self.measured = {name: self._nothing(name) for name in names}
        with Workers(self._num_threads) as workers:
            for name in self.measured:
                for update, window, sampled in self._windows(name):
                    work = partial(self._measure, name, update, window, sampled)
                    workers.submit(work, nbytes=self._memory(name, update, window))

    def try_rarer(self, names: list[str]) -> None:
        """Try the rarer mistakes on samples of tensors that are not explained."""
        self._sources = nearest_layers(self._plan, self._found, names)
        with Workers(self._num_threads) as workers:
            for name in names:
                self.measured[name].sampled = 0
                for update, window, sampled in self._windows(name):
                    if sampled:
                        work = partial(self._try_rarer, name, update, window)
                        workers.submit(work, nbytes=self._memory(name, update, window))
        for name in names:
            terms = self._plan.merges[name]
            mistake = faults.rslora_mistake(terms) if needs_of(terms) == ANY else None
            faults.forget_same_part(self.measured[name], mistake)
            self.faults[name] = faults.judge(self.measured[name])

    def said_of(self, difference: Difference) -> Difference:
        """Return a difference with what was found out about it."""
        name, plan = difference.tensor, self._plan
        if name not in self.faults:
            brought = name in plan.replaced or name in plan.added
            return replace(difference, fault=faults.WHOLE if brought else faults.UNTOUCHED)
        measured, fault = self.measured[name], self.faults[name]
        if fault == faults.OVERFLOW and plan.tensor(name)[1].dtype == "F16":
            fault = faults.FP16_OVERFLOW
        return replace(
            difference,
            part=measured.part,
            right_part=measured.right_part,
            factor=measured.factor,
            ulps=measured.largest if not measured.not_finite else math.inf,
            beyond=(measured.beyond + measured.not_finite) / measured.elements,
            fault=fault,
            source=self._sources.get(name) if fault == faults.ANOTHER_LAYER else None,
        )

    def _nothing(self, name: str) -> Measurement:
        return Measurement(self._plan.tensor(name)[1].dtype)

    def _windows(self, name: str) -> Iterator[tuple[Update, Window, bool]]:
        """Yield the windows of a tensor, and whether each is of the sample."""
        info, terms = self._plan.tensor(name)[1], self._plan.merges[name]
        needs = needs_of(terms)
        most = max(1, _ELEMENTS // info.shape[0]) if needs.cols else _ELEMENTS
        most = info.shape[1] if needs.rows else most
        columns = [
            (start, min(start + most, stop))
            for begin, stop in strips(info, total_rank(terms), needs)
            for start in range(begin, stop, most)
        ]
        apart = -(-len(columns) // _SAMPLES)
        for place, cols in enumerate(columns):
            update = make_update(terms, info.shape, cols, self._num_threads)
            these = list(windows(info, [update], _ELEMENTS * info.nbytes // info.size))
            step = -(-len(these) * len(columns) // (apart * _SAMPLES))
            for number, window in enumerate(these):
                sampled = place % apart == 0 and number % step == min(step, len(these)) // 2
                yield update, window, sampled

    def _memory(self, name: str, update: Update, window: Window) -> int:
        """Return the bytes that measuring a window takes."""
        rows, cols = window.shape
        info = self._plan.tensor(name)[1]
        return work_bytes(info, [update], window) + _ARRAYS_BYTES * rows * cols

    def _measure(self, name: str, update: Update, window: Window, sampled: bool) -> None:
        measured = self._nothing(name)
        with np.errstate(all="ignore"):  # infinite values are counted
            block = self._block(name, update, window)
            measured.add_block(block)
            if sampled:
                measured.add_predictions(block, self._usual(name, block, window, update))
        self._add(name, measured)
        self._progress(runs_of(self._plan.tensor(name)[1], window).nbytes)

    def _try_rarer(self, name: str, update: Update, window: Window) -> None:
        measured = self._nothing(name)
        with np.errstate(all="ignore"):
            block = self._block(name, update, window)
            measured.add_predictions(block, self._rarer(name, block, window))
        self._add(name, measured)

    def _add(self, name: str, measured: Measurement) -> None:
        with self._lock:
            self.measured[name].add(measured)

    def _block(self, name: str, update: Update, window: Window) -> Block:
        file, info = self._plan.tensor(name)
        base = read_window(file, info, window)
        found = read_window(*self._found[name], window)
        right, exact = base.copy(), base.astype(np.float32)
        with contextlib.suppress(NotFiniteError):  # counted, where it is
            apply_update(right, update, window)
        left = update.left(*window.rows)
        change = faults.change_of(left, update.right, update.scaling)
        reach = faults.reach_of(left, update.right, update.scaling)
        if update.needs == ANY:
            return Block(found, base, right, change, reach)
        # DoRA scales what the base has as well.
        reach += np.abs(exact)
        before = exact.copy()
        with contextlib.suppress(NotFiniteError):
            apply_update(exact, update, window)
        return Block(found, base, right, exact - before, reach)

    def _usual(
        self, name: str, block: Block, window: Window, update: Update
    ) -> Iterator[Prediction]:
        terms, shape = self._plan.merges[name], self._plan.tensor(name)[1].shape
        alone = [update]
        if len(terms) > 1:
            alone = [make_update((term,), shape, window.cols, 1) for term in terms]
        if update.needs == ANY:
            yield from faults.usual_predictions(block, faults.rslora_mistake(terms))
            yield from faults.twice_rounded(block, alone, window.rows)
        else:
            product = faults.change_of(update.left(*window.rows), update.right, update.scaling)
            yield from faults.usual_predictions(block, None)
            yield from faults.predictions_of_dora(block, product)

    def _rarer(self, name: str, block: Block, window: Window) -> Iterator[Prediction]:
        terms, shape = self._plan.merges[name], self._plan.tensor(name)[1].shape
        factor = self.measured[name].factor
        if math.isfinite(factor):
            yield from faults.scaled_predictions(block, faults.SCALED, factor)
        if needs_of(terms) != ANY:
            return
        if shape[0] == shape[1]:
            across = change_in(terms, shape, Window(window.cols, window.rows)).T
            yield faults.TRANSPOSED, block.rounded(block.base + across)
        if name in self._sources:
            other = change_in(self._plan.merges[self._sources[name]], shape, window)
            yield faults.ANOTHER_LAYER, block.rounded(block.base + other)
