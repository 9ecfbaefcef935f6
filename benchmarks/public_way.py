"""What public NOLA code does, in torch: the peer that benchmarks compare with.

Seed a generator, draw the whole basis, contract it, and do both again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

RANK = 16


class Drawn(torch.autograd.Function):
    """Draw the whole basis (k, rows, cols) from a seed and contract it, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: torch.Tensor, seed: int, shape: tuple[int, int]
    ) -> torch.Tensor:
        ctx.seed, ctx.shape, ctx.count = seed, shape, len(coefficients)
        basis = draw(seed, len(coefficients), shape, coefficients.device)
        return torch.einsum("k,krc->rc", coefficients, basis)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        basis = draw(ctx.seed, ctx.count, ctx.shape, grads[0].device)
        return torch.einsum("rc,krc->k", grads[0], basis), None, None


def draw(
    seed: int, count: int, shape: tuple[int, int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(count, *shape, device=device).uniform_(-1, 1, generator=generator)


class TorchWay(nn.Module):
    """A linear layer adapted as in public NOLA code."""

    def __init__(self, base: nn.Linear, seed: int, num_basis: int) -> None:
        super().__init__()
        self.base, self.seed = base, seed
        self.alpha = nn.Parameter(torch.randn(num_basis) / num_basis)
        self.beta = nn.Parameter(torch.zeros(num_basis))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = Drawn.apply(self.alpha, 2 * self.seed, (RANK, self.base.in_features))
        b = Drawn.apply(self.beta, 2 * self.seed + 1, (self.base.out_features, RANK))
        return self.base(x) + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))


def torch_way(model: nn.Module, num_basis: int) -> nn.Module:
    """Adapt every linear layer but the head as public NOLA code does."""
    model.requires_grad_(False)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "head" not in n]
    for seed, name in enumerate(linears):
        parent, _, last = name.rpartition(".")
        layer = TorchWay(model.get_submodule(name), seed, num_basis)
        setattr(model.get_submodule(parent), last, layer)
    return model
