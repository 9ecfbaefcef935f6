"""Which rows and columns of a layer this process holds, and what must be summed because of it.

The basis is addressable by row and column, so a process regenerates only its own part of A and B.
What is left to communicate is what any tensor-parallel linear layer communicates: sums over the
group of r numbers per token where columns are split, and of the coefficients' gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

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


def local_window(tensor: torch.Tensor) -> tuple[tuple[int, int], Range, Range]:
    """Return the whole shape of a matrix and the rows and columns of it that are here.

    Parameters
    ----------
    tensor : (m, n) Tensor or DTensor

    Returns
    -------
    shape : (m, n)
    rows, cols : (start, stop)
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = (tensor.shape[0], tensor.shape[1])
    if not isinstance(tensor, DTensor):
        return shape, (0, shape[0]), (0, shape[1])
    size, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return shape, (offset[0], offset[0] + size[0]), (offset[1], offset[1] + size[1])


def computed_shard(weight: torch.Tensor, *, transposed: bool = False) -> tuple[Shard, int, int]:
    """Find how a layer's computation is split, from its weight.

    A weight that FSDP2 stores in parts is gathered before it computes: such a layer is whole. A
    tensor-parallel one computes with its own part.

    Parameters
    ----------
    weight : (out, in), or (in, out) if `transposed`
    transposed : bool

    Returns
    -------
    shard : Shard
    out_features, in_features : int
        Of the whole layer.

    Raises
    ------
    ValueError
        If the weight is split in a way that no linear layer computes with.
    """
    if not torch.distributed.is_available():
        out_features, in_features = reversed(weight.shape) if transposed else weight.shape
        return WHOLE, out_features, in_features
    from torch.distributed.tensor import DTensor

    shape, rows, cols = local_window(weight)
    out_features, in_features = reversed(shape) if transposed else shape
    if not isinstance(weight, DTensor):
        return WHOLE, out_features, in_features
    names = weight.device_mesh.mesh_dim_names or ()
    if set(names) <= {"fsdp", "dp", "dp_shard", "dp_replicate"}:
        return WHOLE, out_features, in_features
    split = [dim for dim, p in enumerate(weight.placements) if p.is_shard()]
    if len(split) > 1:
        raise ValueError(f"weight: split over several mesh dimensions, {weight.placements}")
    if not split:
        return WHOLE, out_features, in_features
    group = weight.device_mesh.get_group(split[0])
    if transposed:
        rows, cols = cols, rows
    if rows != (0, out_features):
        return Shard(rows=rows, group=group), out_features, in_features
    return Shard(cols=cols, group=group), out_features, in_features
