"""Compare the tensors of a file block by block with what they should be."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import NotFiniteError
from nola_edge.merge.audit.judged import judged_of, merged_by_name
from nola_edge.merge.audit.report import Difference, VerifyReport
from nola_edge.merge.blocks import read_runs
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.audit.judged import Judged
    from nola_edge.merge.result import Piece, Result

#: Elements that are compared at a time, in double.
_AT_ONCE = 1 << 16


class Expected(Protocol):
    """The tensors that there should be."""

    @property
    def names(self) -> list[str]:
        """Return their names, in order."""

    @property
    def adapters(self) -> Sequence[tuple[LowRankAdapter, float]]:
        """Return the adapters with their weights."""

    @property
    def merged(self) -> Sequence[str]:
        """Return the names of those that adapters are merged into."""

    @property
    def merges(self) -> Mapping[str, object]:
        """Return those that adapters are merged into, by name."""

    def result(self, name: str) -> Result:
        """Return what a tensor should be."""


def compare(
    expected: Expected,
    candidate: Mapping[str, tuple[InputFile, TensorInfo]],
    num_threads: int | None,
    progress: Callable[[int], None],
) -> VerifyReport:
    """Compare tensors with those that there should be.

    Parameters
    ----------
    expected : Expected
    candidate : mapping
        Name -> file and entry of what there is.
    num_threads : int, optional
    progress : callable
        Called with the number of bytes compared since the last call.

    Returns
    -------
    VerifyReport
    """
    comparison = _Comparison(expected, candidate, progress, num_threads)
    with Workers(num_threads) as workers:
        for name in expected.names:
            comparison.submit(name, workers)
    return comparison.report()


class _Comparison:
    """Compares blocks on several threads and gathers what differs, tensor by tensor."""

    def __init__(
        self,
        expected: Expected,
        candidate: Mapping[str, tuple[InputFile, TensorInfo]],
        progress: Callable[[int], None],
        num_threads: int | None,
    ) -> None:
        self._expected = expected
        self._candidate = candidate
        self._progress = progress
        self._num_threads = num_threads
        self._form: dict[str, Difference] = {}
        self._parts: dict[str, list[Judged]] = {}
        self._values: dict[str, tuple[int, float]] = {}
        self._not_finite: dict[str, str] = {}
        self._lock = threading.Lock()
        self._have, self._want = Buffers(), Buffers()

    def submit(self, name: str, workers: Workers) -> None:
        """Check a tensor's form at once and have its bytes compared."""
        if name not in self._candidate:
            self._form[name] = Difference(name, "missing", "not in the merged files")
            return
        found = self._candidate[name][1]
        right = self._expected.result(name)
        if found.dtype != right.dtype:
            self._form[name] = Difference(name, "dtype", f"{found.dtype} instead of {right.dtype}")
            return
        if tuple(found.shape) != right.shape:
            detail = f"{list(found.shape)} instead of {list(right.shape)}"
            self._form[name] = Difference(name, "shape", detail)
            return
        self._parts[name] = parts = judged_of(name, right, self._candidate[name])
        for part in parts:
            for piece in part.right.pieces(self._num_threads):
                need = piece.work + piece.runs.nbytes
                workers.submit(self._compare, part, piece, nbytes=need)

    def _compare(self, part: Judged, piece: Piece) -> None:
        name = part.name
        file, found = part.found
        runs = piece.runs
        have = read_runs(file, found, runs, self._have.get(runs.nbytes))
        try:
            want = piece.make(self._want.get(piece.nbytes))
        except NotFiniteError as error:  # a merge is refused, so nothing that is there is right
            with self._lock:
                self._not_finite[name] = error.message
            self._progress(runs.nbytes)
            return
        left, right = np.frombuffer(have, np.uint8), np.frombuffer(want, np.uint8)
        if not np.array_equal(left, right):
            count, distance = _distance(left, right, found.dtype)
            with self._lock:
                elements, largest = self._values.get(name, (0, 0.0))
                self._values[name] = elements + count, _larger(largest, distance)
        self._progress(runs.nbytes)

    def report(self) -> VerifyReport:
        """Return the findings, in the order of the base's tensors."""
        weights = len(merged_by_name(self._expected))
        report = VerifyReport(merged=len(self._expected.merged), weights=weights)
        for name in self._expected.names:
            if name in self._form:
                report.differences.append(self._form[name])
                if self._form[name].problem == "missing":
                    continue
            report.differences += self._of_values(name)
            report.tensors += 1
            report.nbytes += self._candidate[name][1].nbytes
        wanted = set(self._expected.names)
        report.differences += [
            Difference(name, "unexpected", "neither in the base nor in an adapter")
            for name in self._candidate
            if name not in wanted
        ]
        return report

    def _of_values(self, name: str) -> Iterator[Difference]:
        for part in self._parts.get(name, ()):
            if part.name in self._not_finite:
                found = Difference(name, "values", self._not_finite[part.name])
            elif part.name in self._values:
                elements, largest = self._values[part.name]
                detail, elements = _said(elements, largest, part.found[1])
                found = Difference(name, "values", detail, elements, largest)
            else:
                continue
            yield replace(found, matrix=part.matrix, lines=part.lines, module=part.module)


def _said(differing: int, largest: float, info: TensorInfo) -> tuple[str, int]:
    """Say how many elements differ, and return that; of less than a byte, their bytes are known."""
    count = max(1, int(np.prod(info.shape)))
    if _has_bytes_only(info.dtype):
        return f"{differing} of {info.nbytes} bytes differ", min(differing, count)
    by = "" if math.isnan(largest) else f", by at most {largest:.3g}"
    return f"{differing} of {count} elements differ{by}", differing


def _has_bytes_only(dtype: str) -> bool:
    try:
        numpy_dtype(dtype)
    except TypeError:
        return True
    return False


def _distance(have: NDArray[np.uint8], want: NDArray[np.uint8], dtype: str) -> tuple[int, float]:
    """Return (differing elements, largest absolute difference) of two blocks of bytes."""
    if _has_bytes_only(dtype):
        return int((have != want).sum()), float("nan")
    kind = numpy_dtype(dtype)
    count, largest = 0, 0.0
    step = _AT_ONCE * kind.itemsize
    for start in range(0, have.size, step):
        part = slice(start, start + step)
        differing, distance = _distance_of(have[part].view(kind), want[part].view(kind))
        count += differing
        largest = _larger(largest, distance)
    return count, largest


def _larger(one: float, other: float) -> float:
    """Return the larger; NaN, for no distance, is larger than any."""
    return float(np.maximum(one, other))


def _distance_of(have: NDArray[Any], want: NDArray[Any]) -> tuple[int, float]:
    size = have.itemsize
    bytes_differ = have.view(np.uint8) != want.view(np.uint8)
    differing = bytes_differ.reshape(-1, size).any(axis=1)
    try:
        with np.errstate(all="ignore"):
            left, right = (values[differing].astype(np.float64) for values in (have, want))
            largest = float(np.abs(left - right).max(initial=0.0))
    except TypeError:
        largest = float("nan")
    return int(differing.sum()), largest
