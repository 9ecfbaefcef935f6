"""Quantisation-aware training: coefficients rounded forward, gradients straight through."""

from __future__ import annotations

import torch

from nola_edge.adapters.quantize import SIXTEENTHS, SMALLEST_SCALE


def fake_quantize(
    coefficients: torch.Tensor, bits: int | None, *, exact_first: bool = False
) -> torch.Tensor:
    """Round coefficients to what an adapter stored with so many bits would hold.

    The values are those of :func:`nola_edge.adapters.quantize.quantize`, bit for bit; the gradient
    is that of the identity (a straight-through estimator, Bengio et al. 2013).

    Parameters
    ----------
    coefficients : (k,) floating point
    bits : int or None
        None: returned as they are.
    exact_first : bool
        Do not round the first one.

    Returns
    -------
    (k,) float32, or the input
    """
    if bits is None:
        return coefficients
    values = coefficients.detach().to(torch.float32)
    largest = (1 << (bits - 1)) - 1
    if exact_first:
        rest = _rounded(torch.cat([torch.zeros_like(values[:1]), values[1:]]), largest)
        rounded = torch.cat([values[:1], rest[1:]])
    else:
        rounded = _rounded(values, largest)
    # x - x is exactly zero, so the sum is the rounded value and its gradient is that of x.
    return rounded + (coefficients.to(torch.float32) - values)


def _rounded(values: torch.Tensor, largest: int) -> torch.Tensor:
    """Return the values that :func:`nola_edge.adapters.quantize.rounded` does."""
    scale = _fitted_scale(values, largest)
    return torch.round(values / _divisor(scale)).clamp(-largest, largest) * scale


def _fitted_scale(values: torch.Tensor, largest: int) -> torch.Tensor:
    """Do as :func:`nola_edge.adapters.quantize.fitted_scale`, step by step; (1,)."""
    top = values.abs().max().reshape(1)
    # By a tensor: CUDA multiplies by the reciprocal of a number.
    whole = _normal(_round_scale(top / torch.full_like(top, largest)))
    tried = (SIXTEENTHS.start, SIXTEENTHS.stop, SIXTEENTHS.step)
    ends = torch.arange(*tried, dtype=torch.float32, device=values.device)[:, None] / 16
    steps = values / _divisor(whole)
    errors = steps - torch.round(steps / ends).clamp(-largest, largest) * ends
    costs = (errors * errors * 2.0**20).to(torch.int64).sum(dim=1)
    return _normal(_round_scale(whole * ends[:, 0].index_select(0, costs.argmin().reshape(1))))


def _normal(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale < float(SMALLEST_SCALE), torch.zeros_like(scale), scale)


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """Return a scale to divide by: all zeros have none, and any divisor gives zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _round_scale(scale: torch.Tensor) -> torch.Tensor:
    """Round to 16 significant bits, to nearest even."""
    bits = scale.view(torch.int32)
    return ((bits + 0x7F + ((bits >> 8) & 1)) & -0x100).view(torch.float32)
