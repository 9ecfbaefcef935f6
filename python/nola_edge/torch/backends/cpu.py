"""The operators' kernels for CPU tensors: the C++ core, on the tensors' own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nola_edge import _core
from nola_edge.torch.operators import (
    check_coefficients,
    check_grad,
    core_matrix,
    register_kernels,
)

if TYPE_CHECKING:
    from nola_edge.torch.operators import Extent


#: Whatever the default device is; an object, since a name would be parsed at every call.
_CPU = torch.device("cpu")


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory the core can read; itself where that is so already."""
    if tensor.dtype is torch.float32:
        return aligned(tensor)
    return tensor.detach().to(torch.float32).contiguous()


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor that lies where its elements may; itself where that is so."""
    if tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)


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
    values = _readable(coefficients)
    size = (max(0, rows[1] - rows[0]), max(0, cols[1] - cols[0]))
    out = torch.empty(size, dtype=torch.float32, device=_CPU)
    matrix = core_matrix(values.numel(), seed, stream, basis, shape, rows, cols)
    _core.expand_at(matrix, values.data_ptr(), out.data_ptr(), torch.get_num_threads())
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
    values = _readable(grad)
    out = torch.empty((num_basis,), dtype=torch.float32, device=_CPU)
    matrix = core_matrix(num_basis, seed, stream, basis, shape, rows, cols)
    _core.project_at(matrix, values.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


register_kernels("cpu", expand, project)
