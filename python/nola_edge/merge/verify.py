"""Check a merged checkpoint bit for bit against its base and adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.checkpoint import Checkpoint
from nola_edge.dtypes import numpy_dtype
from nola_edge.merge.blocks import BLOCK_BYTES, read_merged, row_blocks
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.update import make_update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from nola_edge.safetensors_file import SafetensorsFile, TensorInfo


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
    report = VerifyReport()
    with Checkpoint.open(Path(base)) as checkpoint, Checkpoint.open(Path(merged)) as candidate:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        expected = [*checkpoint.tensors, *plan.added]
        report.merged = len(plan.merges)
        for name in expected:
            if name not in candidate.tensors:
                report.differences.append(Difference(name, "missing", "not in the merged files"))
                continue
            difference = _compare(plan, candidate, name, num_threads, progress or (lambda _: None))
            report.tensors += 1
            report.nbytes += candidate.tensors[name][1].nbytes
            if difference is not None:
                report.differences.append(difference)
        wanted = set(expected)
        report.differences += [
            Difference(name, "unexpected", "neither in the base nor in an adapter")
            for name in candidate.tensors
            if name not in wanted
        ]
        checkpoint.check_unchanged()
        candidate.check_unchanged()
    return report


def _compare(
    plan: MergePlan,
    candidate: Checkpoint,
    name: str,
    num_threads: int | None,
    progress: Callable[[int], None],
) -> Difference | None:
    file, found = candidate.tensors[name]
    dtype, shape = _expected_form(plan, name)
    if found.dtype != dtype:
        return Difference(name, "dtype", f"{found.dtype} instead of {dtype}")
    if tuple(found.shape) != shape:
        return Difference(name, "shape", f"{list(found.shape)} instead of {list(shape)}")
    elements, largest = 0, 0.0
    buffer = np.empty(0, np.uint8)
    offset = 0
    for block in _expected_bytes(plan, name, num_threads):
        count = len(block)
        if buffer.size < count:
            buffer = np.empty(count, np.uint8)
        have = buffer[:count]
        file.read_into(have.data, found.start + offset)
        want = np.frombuffer(block, np.uint8)
        if not np.array_equal(have, want):
            number, distance = _distance(have, want, dtype)
            elements, largest = elements + number, max(largest, distance)
        offset += count
        progress(count)
    if elements == 0:
        return None
    return Difference(
        name,
        "values",
        f"{elements} of {max(1, int(np.prod(shape)))} elements differ, by at most {largest:.3g}",
        elements,
        largest,
    )


def _expected_form(plan: MergePlan, name: str) -> tuple[str, tuple[int, ...]]:
    if name in plan.added:
        from nola_edge.dtypes import safetensors_dtype

        values = plan.added[name]
        return safetensors_dtype(values.dtype), tuple(values.shape)
    info = plan.tensor(name)[1]
    return info.dtype, tuple(info.shape)


def _expected_bytes(
    plan: MergePlan, name: str, num_threads: int | None
) -> Iterator[memoryview | bytes]:
    whole = plan.replaced.get(name, plan.added.get(name))
    if whole is not None:
        yield np.ascontiguousarray(whole).tobytes()
        return
    file, info = plan.tensor(name)
    if info.nbytes == 0:
        return
    if name not in plan.merges:
        yield from _file_bytes(file, info)
        return
    update = make_update(plan.merges[name], info.shape, num_threads)
    buffer = np.empty(0, np.uint8)
    for start, stop in row_blocks(info):
        needed = (stop - start) * info.nbytes // info.shape[0]
        if buffer.size < needed:
            buffer = np.empty(needed, np.uint8)
        yield read_merged(file, info, update, (start, stop), buffer.data)


def _file_bytes(file: SafetensorsFile, info: TensorInfo) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(BLOCK_BYTES, info.nbytes)))
    for start in range(0, info.nbytes, BLOCK_BYTES):
        part = buffer[: min(BLOCK_BYTES, info.nbytes - start)]
        file.read_into(part, info.start + start)
        yield part


def _distance(have: NDArray[np.uint8], want: NDArray[np.uint8], dtype: str) -> tuple[int, float]:
    """Return (differing elements, largest absolute difference) of two blocks of bytes."""
    kind = numpy_dtype(dtype)
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
