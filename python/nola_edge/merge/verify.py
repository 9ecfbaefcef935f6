"""Check a merged checkpoint bit for bit against its base and adapters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.checkpoint import Checkpoint
from nola_edge.dtypes import numpy_dtype, safetensors_dtype
from nola_edge.merge.blocks import (
    BLOCK_BYTES,
    Buffers,
    Workers,
    block_offset,
    read_merged,
    row_blocks,
)
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.update import make_update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from nola_edge.safetensors_file import SafetensorsFile

#: Gives a block's expected bytes, in the buffer it gets or in memory of its own.
_Produce = Callable[[memoryview], memoryview]


@dataclass(frozen=True)
class Difference:
    """One tensor that is not what base and adapters give.

    Attributes
    ----------
    tensor : str
    problem : str
        ``"missing"``, ``"unexpected"``, ``"dtype"``, ``"shape"`` or ``"values"``.
    detail : str
        For people.
    elements : int
        Differing elements (for ``"values"``).
    largest : float
        Largest absolute difference, NaN where it cannot be computed.
    """

    tensor: str
    problem: str
    detail: str
    elements: int = 0
    largest: float = float("nan")


@dataclass
class VerifyReport:
    """What :func:`verify_checkpoint` found.

    Attributes
    ----------
    tensors : int
        Tensors compared.
    merged : int
        Of these, tensors that the adapters change.
    nbytes : int
        Bytes compared.
    differences : list of Difference
    """

    tensors: int = 0
    merged: int = 0
    nbytes: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether every tensor is there and every bit agrees."""
        return not self.differences

    def __bool__(self) -> bool:
        return self.identical


def verify_checkpoint(
    merged: str | Path,
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    check_base: bool = True,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare every tensor of a merged checkpoint with what base and adapters give.

    Files may be sharded differently; only names, dtypes, shapes and bytes count.

    Parameters
    ----------
    merged, base : path
    adapter : as for :func:`~nola_edge.open_merged`
    num_threads : int, optional
    check_base : bool
    progress : callable, optional
        Called with the number of bytes compared since the last call.

    Returns
    -------
    VerifyReport

    Raises
    ------
    NolaEdgeError
        If a file is not what it claims, or adapter and base do not fit.
    """
    adapters = load_adapters(adapter)
    with Checkpoint.open(Path(base)) as checkpoint, Checkpoint.open(Path(merged)) as candidate:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        comparison = _Comparison(plan, candidate, progress or (lambda _: None))
        with Workers(num_threads) as workers:
            for name in comparison.expected:
                comparison.submit(name, workers, num_threads)
        checkpoint.check_unchanged()
        candidate.check_unchanged()
    return comparison.report()


class _Comparison:
    """Compares blocks on several threads and gathers what differs, tensor by tensor."""

    def __init__(
        self, plan: MergePlan, candidate: Checkpoint, progress: Callable[[int], None]
    ) -> None:
        self.expected = [*plan.base.tensors, *plan.added]
        self._plan = plan
        self._candidate = candidate
        self._progress = progress
        self._form: dict[str, Difference] = {}
        self._values: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._have, self._want = Buffers(), Buffers()

    def submit(self, name: str, workers: Workers, num_threads: int | None) -> None:
        """Check a tensor's form at once and have its bytes compared."""
        if name not in self._candidate.tensors:
            self._form[name] = Difference(name, "missing", "not in the merged files")
            return
        found = self._candidate.tensors[name][1]
        dtype, shape = _expected_form(self._plan, name)
        if found.dtype != dtype:
            self._form[name] = Difference(name, "dtype", f"{found.dtype} instead of {dtype}")
            return
        if tuple(found.shape) != shape:
            detail = f"{list(found.shape)} instead of {list(shape)}"
            self._form[name] = Difference(name, "shape", detail)
            return
        for offset, nbytes, produce in self._blocks(name, num_threads):
            workers.submit(self._compare, name, offset, nbytes, produce)

    def _blocks(self, name: str, num_threads: int | None) -> Iterator[tuple[int, int, _Produce]]:
        """Yield offset, size and producer of each block of a tensor's expected bytes."""
        whole = self._plan.replaced.get(name, self._plan.added.get(name))
        if whole is not None:
            data = np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data
            yield 0, len(data), lambda _: data
            return
        file, info = self._plan.tensor(name)
        if info.nbytes == 0:
            return
        if name in self._plan.merges:
            update = make_update(self._plan.merges[name], info.shape, num_threads)
            for rows in row_blocks(info):
                begin, end = block_offset(info, rows[0]), block_offset(info, rows[1])
                yield begin, end - begin, partial(read_merged, file, info, update, rows)
            return
        for begin in range(0, info.nbytes, BLOCK_BYTES):
            count = min(BLOCK_BYTES, info.nbytes - begin)
            yield begin, count, partial(_read, file, info.start + begin)

    def _compare(self, name: str, offset: int, nbytes: int, produce: _Produce) -> None:
        file, found = self._candidate.tensors[name]
        have = self._have.get(nbytes)
        file.read_into(have, found.start + offset)
        want = produce(self._want.get(nbytes))
        left, right = np.frombuffer(have, np.uint8), np.frombuffer(want, np.uint8)
        if not np.array_equal(left, right):
            count, distance = _distance(left, right, found.dtype)
            with self._lock:
                elements, largest = self._values.get(name, (0, 0.0))
                self._values[name] = elements + count, max(largest, distance)
        self._progress(nbytes)

    def report(self) -> VerifyReport:
        """Return the findings, in the order of the base's tensors."""
        report = VerifyReport(merged=len(self._plan.merges))
        for name in self.expected:
            if name in self._form:
                report.differences.append(self._form[name])
                if self._form[name].problem == "missing":
                    continue
            elif name in self._values:
                elements, largest = self._values[name]
                count = max(1, int(np.prod(_expected_form(self._plan, name)[1])))
                detail = f"{elements} of {count} elements differ, by at most {largest:.3g}"
                report.differences.append(Difference(name, "values", detail, elements, largest))
            report.tensors += 1
            report.nbytes += self._candidate.tensors[name][1].nbytes
        wanted = set(self.expected)
        report.differences += [
            Difference(name, "unexpected", "neither in the base nor in an adapter")
            for name in self._candidate.tensors
            if name not in wanted
        ]
        return report


def _expected_form(plan: MergePlan, name: str) -> tuple[str, tuple[int, ...]]:
    if name in plan.added:
        values = plan.added[name]
        return safetensors_dtype(values.dtype), tuple(values.shape)
    info = plan.tensor(name)[1]
    return info.dtype, tuple(info.shape)


def _read(file: SafetensorsFile, begin: int, out: memoryview) -> memoryview:
    file.read_into(out, begin)
    return out


def _distance(have: NDArray[np.uint8], want: NDArray[np.uint8], dtype: str) -> tuple[int, float]:
    """Return (differing elements, largest absolute difference) of two blocks of bytes."""
    try:
        kind = numpy_dtype(dtype)
    except TypeError:  # elements of less than a byte: their bytes are counted
        return int((have != want).sum()), float("nan")
    size = kind.itemsize
    differing = (have.reshape(-1, size) != want.reshape(-1, size)).any(axis=1)
    try:
        with np.errstate(all="ignore"):
            left = have.view(kind)[differing].astype(np.float64)
            right = want.view(kind)[differing].astype(np.float64)
            largest = float(np.abs(left - right).max())
    except TypeError:
        largest = float("nan")
    return int(differing.sum()), largest
