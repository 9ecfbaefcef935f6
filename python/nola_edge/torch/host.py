"""The operators for tensors on devices that have no kernels of their own: through the host.

Exact, and slower than a kernel: coefficients go to the host and the factors to the device, r rows
and columns for each layer, and gradients the other way.
"""

from __future__ import annotations

from typing import Any

import torch

from nola_edge.torch import cpu
from nola_edge.torch.library import register_kernels

#: Types of device; a file with kernels for one of them takes its name off this list.
DEVICES = ("cuda", "mps", "xpu")


def expand(coefficients: torch.Tensor, *source: Any) -> torch.Tensor:
    """Expand on the host; the result is on the device of the coefficients."""
    return cpu.expand(coefficients.cpu(), *source).to(coefficients.device)


def project(grad: torch.Tensor, num_basis: int, *source: Any) -> torch.Tensor:
    """Project on the host; the result is on the device of the gradient."""
    return cpu.project(grad.cpu(), num_basis, *source).to(grad.device)


for device in DEVICES:
    register_kernels(device, expand, project)
