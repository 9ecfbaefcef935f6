"""The operators for tensors on devices that have no kernels of their own: through the host.

Exact, and slower than a kernel: coefficients go to the host and the factors to the device, r rows
and columns for each layer, and gradients the other way.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

from nola_edge.torch.backends import cpu
from nola_edge.torch.operators import has_kernels, register_kernels

#: Types of device; one that has kernels of its own when this module is imported keeps them.
DEVICES = ("cuda", "mps", "xpu")


@cache
def _warn_of_cuda() -> None:
    warnings.warn(
        "nola-edge was installed without its CUDA kernels: the factors of layers on the GPU are "
        "expanded on the CPU, with the same bits and slower. Install it again where nvcc is, in a "
        "checkout: pip install --force-reinstall --no-deps "
        "--config-settings=cmake.define.NOLA_CUDA=ON .",
        stacklevel=2,
    )


def expand(coefficients: torch.Tensor, *source: Any) -> torch.Tensor:
    """Expand on the host; the result is on the device of the coefficients."""
    if coefficients.device.type == "cuda":
        _warn_of_cuda()
    return cpu.expand(coefficients.cpu(), *source).to(coefficients.device)


def project(grad: torch.Tensor, num_basis: int, *source: Any) -> torch.Tensor:
    """Project on the host; the result is on the device of the gradient."""
    return cpu.project(grad.cpu(), num_basis, *source).to(grad.device)


for device in DEVICES:
    if not has_kernels(device):
        register_kernels(device, expand, project)
