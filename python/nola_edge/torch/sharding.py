"""Which rows and columns of a layer this process holds, and what must be summed because of it.

The basis is addressable by row and column, so a process regenerates only its own part of A and B.
What is left to communicate is what any tensor-parallel linear layer communicates: sums over the
group of r numbers per token where columns are split, and of the coefficients' gradients.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.errors import ArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from nola_edge.ops import Range


class _SumForward(torch.autograd.Function):
    """Sum over the group forward; the gradient, the same everywhere, goes back as it is."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _SumBackward(torch.autograd.Function):
    """The same tensor everywhere forward; the partial gradients are summed over the group."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


@dataclass(frozen=True)
class Shard:
    """The part of a weight (out, in) that is held here.

    Attributes
    ----------
    rows, cols : (start, stop) or None
        Of the output and of the input features; None: all of them.
    group : ProcessGroup or None
        Who holds the other parts; None: nobody computes with them at the same time.
    """

    rows: Range | None = None
    cols: Range | None = None
    group: ProcessGroup | None = None

    def share_input(self, x: torch.Tensor) -> torch.Tensor:
        """Mark an input that every process has: with rows split, its gradients are partial."""
        return _apply(_SumBackward, x, self.group if self.rows is not None else None)

    def share_alpha(self, alpha: torch.Tensor) -> torch.Tensor:
        """Mark the coefficients of A: partial gradients however the layer is split."""
        return _apply(_SumBackward, alpha, self.group)

    def share_beta(self, beta: torch.Tensor) -> torch.Tensor:
        """Mark the coefficients of B: partial gradients where rows are split."""
        return _apply(_SumBackward, beta, self.group if self.rows is not None else None)

    def reduce(self, hidden: torch.Tensor) -> torch.Tensor:
        """Complete x A^T: with columns split, every process has a part of the sum."""
        return _apply(_SumForward, hidden, self.group if self.cols is not None else None)


#: A layer that is not split.
WHOLE = Shard()


def _apply(function: Any, tensor: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    return tensor if group is None else function.apply(tensor, group)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a coefficient tensor that FSDP2 may have split, gathered and off the graph."""
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach()


def local_window(tensor: Any) -> tuple[Range, ...]:
    """Return the part of a tensor that this process holds: of a matrix, its rows and columns.

    Parameters
    ----------
    tensor : Tensor or DTensor

    Returns
    -------
    tuple of (start, stop)
        One for each dimension.

    Raises
    ------
    ValueError
        If they are not one window, see :func:`is_one_window`.
    """
    if not hasattr(tensor, "device_mesh"):
        return tuple((0, size) for size in tensor.shape)
    if not is_one_window(tensor):
        placements = getattr(tensor, "placements", ())
        raise ArgumentError(
            f"is split in a way that cannot be merged into, {placements}", field="weight"
        )
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    size, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple((start, start + count) for start, count in zip(offset, size, strict=True))


def is_one_window(tensor: torch.Tensor) -> bool:
    """Tell whether what this process holds of a tensor is one block of its rows and columns.

    Not so for terms of a sum, nor where each process holds some of every part of a layer that is
    packed of several (``packed_colwise`` in transformers), unless later dimensions of the mesh put
    it together again, as FSDP2 does on top of tensor parallelism.
    """
    if not hasattr(tensor, "device_mesh"):
        return True
    split: Any = tensor
    return _is_one_window(tuple(split.device_mesh.shape), split.placements, split.dim())


def _is_one_window(sizes: tuple[int, ...], placements: tuple[Any, ...], ndim: int) -> bool:
    if any(p.is_partial() for p in placements):
        return False
    split = [(size, p, p.dim % ndim) for size, p in zip(sizes, placements, strict=True)
             if hasattr(p, "dim")]  # fmt: skip
    for i, (size, p, dim) in enumerate(split):
        later = math.prod(n for n, q, d in split[i + 1 :] if d == dim and q.is_shard())
        if size > 1 and getattr(p, "split_factor", 1) not in (1, later):
            return False
    return True


def computed_shard(weight: torch.Tensor, *, transposed: bool = False) -> Shard:
    """Find how a layer's computation is split, from its weight during the forward pass.

    A weight that FSDP2 stores in parts is gathered by then, and no DTensor: such a layer is whole.
    A tensor-parallel one computes with its own part.

    Parameters
    ----------
    weight : (out, in), or (in, out) if `transposed`
    transposed : bool

    Raises
    ------
    ValueError
        If the weight is split in a way that no linear layer computes with.
    """
    if not hasattr(weight, "device_mesh"):
        return WHOLE
    split: Any = weight
    return _shard(split.device_mesh, split.placements, tuple(split.shape), transposed)


@functools.lru_cache
def _shard(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, int], transposed: bool) -> Any:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not _is_one_window(tuple(mesh.shape), placements, len(shape)):
        raise ArgumentError(
            f"is split in a way that no linear layer computes with, {placements}", field="weight"
        )
    split = [dim for dim, p in enumerate(placements) if p.is_shard()]
    if len(split) > 1:
        raise ArgumentError(f"split over several mesh dimensions, {placements}", field="weight")
    if not split:
        return WHOLE
    size, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    windows = [(offset[dim], offset[dim] + size[dim]) for dim in (0, 1)]
    rows, cols = reversed(windows) if transposed else windows
    group = mesh.get_group(split[0])
    is_split_by_rows = placements[split[0]].dim == (1 if transposed else 0)
    return Shard(rows=rows, group=group) if is_split_by_rows else Shard(cols=cols, group=group)


def check_layout(shard: Shard, x: torch.Tensor, result: torch.Tensor) -> None:
    """Refuse a tensor-parallel style whose inputs or outputs are not the layer's own part.

    Raises
    ------
    NotImplementedError
        If it gathers what a column-wise layer gives, or wants the whole input of a row-wise one.
    """
    for features, part in ((x, shard.cols), (result, shard.rows)):
        if part is not None and features.shape[-1] != part[1] - part[0]:
            raise NotImplementedError(
                f"a tensor-parallel layer that holds {part[1] - part[0]} features here has "
                f"{features.shape[-1]} in its input or output; NOLA follows ColwiseParallel() and "
                "RowwiseParallel() with their default layouts"
            )
