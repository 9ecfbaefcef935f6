"""Merge adapters into torch's tensors: in place, in fp32, rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nola_edge import _core
from nola_edge.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from nola_edge.torch.addends import MERGEABLE, Addend
from nola_edge.torch.backends import cpu, cuda
from nola_edge.torch.expand_together import expand_group
from nola_edge.torch.factors import Factors, concatenated
from nola_edge.torch.sharding import Shard, local_window, whole_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


@torch.no_grad()
def merge_factors_(
    weight: torch.Tensor, addends: Sequence[Addend], *, transposed: bool = False
) -> None:
    """Merge adapters into one weight, in place.

    Parameters
    ----------
    weight : (out, in) float32, float16 or bfloat16; (in, out) if `transposed`
        A tensor or a DTensor, of which this process's part is merged, without communication.
    addends : sequence of (Factors, alpha, beta, scaling)
        Factors of the whole layer; whatever part of it they name is passed over.
    transposed : bool

    Raises
    ------
    ArgumentError
        If the weight cannot be merged into; nothing was changed.
    NotFiniteError
        If a coefficient is infinite or NaN, on every process alike; the weight was not changed. If
        a merged element is; the weight then holds it.
    """
    _merge_prepared(*_prepared(weight, addends, transposed), transposed)


def _prepared(
    weight: torch.Tensor, addends: Sequence[Addend], transposed: bool
) -> tuple[torch.Tensor, list[Addend]]:
    """Return this process's part of a weight, and the addends for it, on the weight's device.

    Raises
    ------
    NotFiniteError
        If a coefficient is infinite or NaN.
    """
    rows, cols = local_window(weight)
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    shard = Shard(rows=cols, cols=rows) if transposed else Shard(rows=rows, cols=cols)
    parts: list[Addend] = []
    for factors, *coefficients, scaling in addends:
        alpha, beta = map(whole_tensor, coefficients)
        if not (alpha.isfinite().all() and beta.isfinite().all()):
            raise NotFiniteError("has coefficients that are not finite", field=factors.module)
        parts.append((factors.on(shard), alpha.to(local.device), beta.to(local.device), scaling))
    return local, parts


def _merge_prepared(local: torch.Tensor, parts: Sequence[Addend], transposed: bool) -> None:
    a, b, scaling = concatenated([(f.a(alpha), f.b(beta), s) for f, alpha, beta, s in parts])
    merge_low_rank_(local, *_sides(a, b, transposed), scaling)


def _sides(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the left and the right factor of the update of a weight."""
    return (a.T, b.T) if transposed else (b, a)


def merge_low_rank_(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float
) -> None:
    """Merge ``scaling * left @ right`` into a matrix (docs/design.md, *Merge*).

    Parameters
    ----------
    weight : (m, n) float32, float16 or bfloat16
        On any device; any strides, though contiguous rows save a copy.
    left : (m, r) float32
    right : (r, n) float32
        On the weight's device.
    scaling : float

    Raises
    ------
    ArgumentError
        If the weight is not such a matrix, or the factors do not fit it; nothing was changed.
    NotFiniteError
        If a factor is infinite or NaN, and nothing was changed, or if a merged element is; the
        weight then holds it.
    """
    _check_merge(weight, left, right)
    if weight.device.type == "cuda" and cuda.is_built():
        if not (left.isfinite().all() & right.isfinite().all()):
            raise NotFiniteError("a factor is infinite or NaN; the weight was not changed")
        _merge_on_cuda([(weight, left, right, scaling)])
        return
    if weight.device.type != "cpu":
        # The same operations on the host: the bits are those of every other device.
        host = weight.cpu()
        merge_low_rank_(host, left.cpu(), right.cpu(), scaling)
        weight.copy_(host)
        return
    target, left, right = cpu.aligned(weight), cpu.aligned(left), cpu.aligned(right)
    finite = _core.merge_at(
        target.data_ptr(),
        str(weight.dtype).removeprefix("torch."),
        (weight.shape[0], weight.shape[1]),
        left.data_ptr(),
        right.data_ptr(),
        right.shape[0],
        scaling,
        torch.get_num_threads(),
    )
    if target.data_ptr() != weight.data_ptr():
        weight.copy_(target)
    if not finite:
        raise NotFiniteError("a merged weight is infinite or NaN", field="weight")


def _check_merge(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if weight.is_meta:
        raise ArgumentError("is on the meta device, which holds no values", field="weight")
    if weight.dtype not in MERGEABLE:
        raise ArgumentTypeError(
            f"must be float32, float16 or bfloat16, got {weight.dtype}", field="weight"
        )
    if weight.dim() != 2:
        raise ArgumentError(f"must have 2 dimensions, got {tuple(weight.shape)}", field="weight")
    for name, factor in (("left", left), ("right", right)):
        if factor.dtype != torch.float32:
            raise ArgumentTypeError(f"must be float32, got {factor.dtype}", field=name)
        if factor.device != weight.device:
            raise ArgumentError(f"is on {factor.device}, the weight on {weight.device}", field=name)
    rank = right.shape[0] if right.dim() == 2 else 0
    if left.shape != (weight.shape[0], rank) or right.shape != (rank, weight.shape[1]):
        raise ArgumentError(
            f"have shapes {tuple(left.shape)} and {tuple(right.shape)}, which do not make "
            f"{tuple(weight.shape)}",
            field="left, right",
        )


def _merge_on_cuda(
    updates: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]],
) -> None:
    """Merge (weight, left, right, scaling) on one device; waits for it once, to see the outcome.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN, as any is that a factor of the kind has touched.
    """
    not_finite = torch.zeros((), dtype=torch.int32, device=updates[0][0].device)
    targets = [weight if _has_whole_rows(weight) else weight.contiguous() for weight, *_ in updates]
    cuda.merge_group(
        [(t, t, left, right, s) for t, (_, left, right, s) in zip(targets, updates, strict=True)],
        not_finite,
    )
    for target, (weight, *_) in zip(targets, updates, strict=True):
        if target is not weight:
            weight.copy_(target)
    if not_finite:
        raise NotFiniteError("a merged weight is infinite or NaN", field="weight")


def _has_whole_rows(weight: torch.Tensor) -> bool:
    return weight.stride(1) == 1 and weight.stride(0) >= weight.shape[1]


@torch.no_grad()
def merge_many_(updates: Sequence[tuple[torch.Tensor, Sequence[Addend], bool]]) -> None:
    """Merge adapters into many weights; on a CUDA device in a few launches.

    Nothing is changed before every coefficient has been looked at.

    Parameters
    ----------
    updates : sequence of (weight, addends, transposed)
        As :func:`merge_factors_` takes them.

    Raises
    ------
    NotFiniteError
        If a coefficient is infinite or NaN, and nothing was changed; or if a merged element is:
        weights then hold it; :func:`nola_edge.models.merge.check_finite` tells before.
    """
    on_device: dict[torch.device, list[Any]] = {}
    others = []
    for weight, addends, transposed in updates:
        local, parts = _prepared(weight, addends, transposed)
        generated = all(isinstance(factors, Factors) for factors, *_ in parts)
        if generated and local.device.type == "cuda" and cuda.is_built():
            on_device.setdefault(local.device, []).append((local, parts, transposed))
        else:
            others.append((local, parts, transposed))
    for local, parts, transposed in others:
        _merge_prepared(local, parts, transposed)
    for prepared_updates in on_device.values():
        for batch in _batches(prepared_updates):
            _merge_batch(batch)


def _batches(updates: Sequence[Any]) -> list[list[Any]]:
    """Cut a list of updates where their factors would take too much memory."""
    batches: list[list[Any]] = [[]]
    size = 0
    for local, parts, transposed in updates:
        needed = sum(4 * f.r * sum(local.shape) for f, *_ in parts)
        if batches[-1] and size + needed > cuda.FACTOR_BYTES:
            batches.append([])
            size = 0
        batches[-1].append((local, parts, transposed))
        size += needed
    return batches


def _merge_batch(batch: Sequence[Any]) -> None:
    addends = [addend for _, parts, _ in batch for addend in parts]
    matrices = expand_group(
        [c for _, alpha, beta, _ in addends for c in (alpha, beta)],
        [source for factors, *_ in addends for source in (factors.a_source, factors.b_source)],
    )
    expanded = iter(
        (matrices[2 * i], matrices[2 * i + 1], scaling) for i, (*_, scaling) in enumerate(addends)
    )
    updates = []
    for local, parts, transposed in batch:
        a, b, scaling = concatenated([next(expanded) for _ in parts])
        updates.append((local, *_sides(a, b, transposed), scaling))
    _merge_on_cuda(updates)
