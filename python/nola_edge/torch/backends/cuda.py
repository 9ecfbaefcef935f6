"""The operators' kernels for CUDA tensors, and launches that serve many matrices at once.

Everything is put on the current stream of the tensors' device; nothing waits for the device. The
compiled module is imported at the first use: a program that never sees a CUDA tensor does not load
it, and one that was installed without it goes through the host (``host.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.torch.operators import (
    check_coefficients,
    check_grad,
    core_matrix,
    register_group_kernels,
    register_kernels,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nola_edge.torch.operators import Extent, Source

#: Types that kernels read and write; others are converted first.
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}

#: Bytes of factors that a merge of many weights holds at a time.
FACTOR_BYTES = 256 << 20


@cache
def is_built() -> bool:
    """Tell whether this installation has CUDA kernels."""
    return find_spec("nola_edge._cuda") is not None


@cache
def _kernels() -> Any:
    from nola_edge import _cuda

    return _cuda


def _place(device: torch.device) -> tuple[int, int]:
    """Return a device's number and the address of its current stream."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _readable(tensor: torch.Tensor, dtypes: Sequence[torch.dtype]) -> torch.Tensor:
    """Return a tensor that a kernel can read; itself where that is so already."""
    tensor = tensor.detach()
    if tensor.dtype not in dtypes:
        tensor = tensor.to(torch.float32)
    return tensor.contiguous()


def _size(rows: Extent, cols: Extent) -> tuple[int, int]:
    return max(0, rows[1] - rows[0]), max(0, cols[1] - cols[0])


def expand(
    coefficients: torch.Tensor,
    seed: int,
    stream: int,
    basis: str,
    shape: Extent,
    rows: Extent,
    cols: Extent,
) -> torch.Tensor:
    """Return g * sum_i coefficients[i] * basis_i of the slice, float32."""
    check_coefficients(coefficients)
    values = _readable(coefficients, (torch.float32,))
    out = torch.empty(_size(rows, cols), dtype=torch.float32, device=values.device)
    with torch.cuda.device(values.device):
        matrix = core_matrix(values.numel(), seed, stream, basis, shape, rows, cols)
        place = _place(values.device)
        _kernels().expand_at(matrix, values.data_ptr(), out.data_ptr(), "float32", *place)
    return out


def project(
    grad: torch.Tensor,
    num_basis: int,
    seed: int,
    stream: int,
    basis: str,
    shape: Extent,
    rows: Extent,
    cols: Extent,
) -> torch.Tensor:
    """Return the gradient's products with each basis matrix, float32."""
    check_grad(grad, rows, cols)
    values = _readable(grad, tuple(_NAMES))
    device = values.device
    matrix = core_matrix(num_basis, seed, stream, basis, shape, rows, cols)
    with torch.cuda.device(device):
        workspace = _workspace(_kernels().project_workspace(matrix), device)
        out = torch.empty((num_basis,), dtype=torch.float32, device=device)
        _kernels().project_at(
            matrix,
            values.data_ptr(),
            _NAMES[values.dtype],
            out.data_ptr(),
            workspace.data_ptr(),
            *_place(device),
        )
    return out


def _workspace(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty((size // 8,), dtype=torch.float64, device=device)


def _on_device(table: bytes, device: torch.device) -> torch.Tensor:
    """Copy a group's table to the device, without waiting for what is queued there."""
    staged = torch.empty((len(table),), dtype=torch.uint8, pin_memory=True)
    staged.copy_(torch.frombuffer(bytearray(table), dtype=torch.uint8))
    return staged.to(device, non_blocking=True)


class _Tables:
    """Tables of groups on their devices, for groups that come again with the same addresses.

    A training step allocates what the step before has freed, so its addresses mostly recur.
    """

    _MOST = 8

    def __init__(self) -> None:
        self._lock = Lock()
        self._tables: OrderedDict[Any, tuple[Any, torch.Tensor, object]] = OrderedDict()

    def get(
        self,
        sources: Sequence[Source],
        key: tuple[Any, ...],
        device: torch.device,
        plan: Callable[[], Any],
    ) -> tuple[Any, torch.Tensor]:
        """Return a plan and its table on the device, made for the same `sources` and key or now.

        A table belongs to the stream that it was copied on.
        """
        whole = (id(sources), *_place(device), *key)
        with self._lock:
            found = self._tables.get(whole)
            if found is None:
                planned = plan()
                table = planned[0] if isinstance(planned, tuple) else planned
                found = planned, _on_device(table, device), sources  # kept alive with their id
                self._tables[whole] = found
                if len(self._tables) > self._MOST:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(whole)
        return found[:2]


_TABLES = _Tables()


def expand_group(
    coefficients: Sequence[torch.Tensor], sources: Sequence[Source]
) -> list[torch.Tensor]:
    """Expand many matrices of one seed and one basis in one launch; the results share memory."""
    device = coefficients[0].device
    if torch.cuda.is_current_stream_capturing():  # no table can be copied; a graph launches fast
        return [expand(c, *source) for c, source in zip(coefficients, sources, strict=True)]
    for values in coefficients:
        check_coefficients(values)
    read = [_readable(values, (torch.float32,)) for values in coefficients]
    sizes = [_size(source[4], source[5]) for source in sources]
    flat = torch.empty((sum(m * n for m, n in sizes),), dtype=torch.float32, device=device)
    outs = [
        part.view(size)
        for part, size in zip(flat.split([m * n for m, n in sizes]), sizes, strict=True)
    ]
    seed, _, basis, *_ = sources[0]
    addresses = tuple((v.data_ptr(), v.numel()) for v in read)

    def plan() -> Any:
        tasks = [
            (core_matrix(count, *source), address, out.data_ptr())
            for source, (address, count), out in zip(sources, addresses, outs, strict=True)
        ]
        return _kernels().plan_expand(tasks)

    with torch.cuda.device(device):
        table, copied = _TABLES.get(sources, (flat.data_ptr(), addresses), device, plan)
        _kernels().expand_group(basis, seed, "float32", table, copied.data_ptr(), *_place(device))
    return outs


def project_group(
    grads: Sequence[torch.Tensor], num_basis: Sequence[int], sources: Sequence[Source]
) -> list[torch.Tensor]:
    """Project many gradients, of one seed and one basis, in two launches for each dtype."""
    device = grads[0].device
    if torch.cuda.is_current_stream_capturing():
        return [
            project(grad, k, *source)
            for grad, k, source in zip(grads, num_basis, sources, strict=True)
        ]
    for grad, source in zip(grads, sources, strict=True):
        check_grad(grad, source[4], source[5])
    read = [_readable(grad, tuple(_NAMES)) for grad in grads]
    flat = torch.empty((sum(num_basis),), dtype=torch.float32, device=device)
    outs = list(flat.split(list(num_basis)))
    seed, _, basis, *_ = sources[0]
    with torch.cuda.device(device):
        for dtype in dict.fromkeys(values.dtype for values in read):
            addresses = tuple(
                (source, count, values.data_ptr(), out.data_ptr())
                for source, count, values, out in zip(sources, num_basis, read, outs, strict=True)
                if values.dtype == dtype
            )

            def plan(addresses: Any = addresses) -> Any:
                return _kernels().plan_project(
                    [(core_matrix(count, *source), *rest) for source, count, *rest in addresses]
                )

            key = (dtype, flat.data_ptr(), tuple(task[1:] for task in addresses))
            (table, size), copied = _TABLES.get(sources, key, device, plan)
            workspace = _workspace(size, device)
            _kernels().project_group(
                basis,
                seed,
                _NAMES[dtype],
                table,
                copied.data_ptr(),
                workspace.data_ptr(),
                *_place(device),
            )
    return outs


def merge_low_rank(
    base: torch.Tensor,
    out: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    scaling: float,
    not_finite: torch.Tensor,
) -> None:
    """Write ``base + scaling * left @ right``, rounded once, to `out`, which may be `base`.

    Parameters
    ----------
    base, out : (m, n) float32, float16 or bfloat16
        Of one dtype and the same strides; rows are contiguous.
    left : (m, r) float32
    right : (r, n) float32
    scaling : float
    not_finite : () int32
        Set where a merged element is infinite or NaN.
    """
    task = _merge_task(base, out, *_contiguous(left, right), scaling)
    with torch.cuda.device(out.device):
        _kernels().merge_at(
            *task[:2],
            _NAMES[out.dtype],
            *task[2:],
            not_finite.data_ptr(),
            *_place(out.device),
        )


#: base, out, left, right, scaling of one weight; see :func:`merge_low_rank`.
Merge = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]


def merge_group(merges: Sequence[Merge], not_finite: torch.Tensor) -> None:
    """Merge many weights of one device, in one launch for each dtype; see `merge_low_rank`."""
    device = not_finite.device
    held = [(*_contiguous(left, right), scaling) for _, _, left, right, scaling in merges]
    with torch.cuda.device(device):
        for dtype in dict.fromkeys(out.dtype for _, out, *_ in merges):
            table = _kernels().plan_merge(
                _NAMES[dtype],
                [
                    _merge_task(base, out, *update)
                    for (base, out, *_), update in zip(merges, held, strict=True)
                    if out.dtype == dtype
                ],
            )
            copied = _on_device(table, device)
            _kernels().merge_group(
                _NAMES[dtype], table, copied.data_ptr(), not_finite.data_ptr(), *_place(device)
            )


def _contiguous(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return left.contiguous(), right.contiguous()


def _merge_task(
    base: torch.Tensor, out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float
) -> tuple[Any, ...]:
    m, n = out.shape
    # A matrix of one row may carry any number as the stride between its rows.
    stride = n if m < 2 else out.stride(0)
    return (
        base.data_ptr(),
        out.data_ptr(),
        (m, n),
        stride,
        left.data_ptr(),
        right.data_ptr(),
        n,
        right.shape[0],
        scaling,
    )


if is_built():
    register_kernels("cuda", expand, project)
    register_group_kernels("cuda", expand_group, project_group)
