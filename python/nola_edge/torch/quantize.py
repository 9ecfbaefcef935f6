"""Quantisation-aware training: coefficients rounded forward, gradients straight through."""

from __future__ import annotations

import torch

from nola_edge.adapters.quantize import SMALLEST_SCALE


def fake_quantize(coefficients: torch.Tensor, bits: int | None) -> torch.Tensor:
    """Round coefficients to what an adapter stored with so many bits would hold.

    The values are those of :func:`nola_edge.adapters.quantize.quantize`, bit for bit; the gradient
    is that of the identity (a straight-through estimator, Bengio et al. 2013).

    Parameters
    ----------
    coefficients : (k,) floating point
    bits : int or None
        None: returned as they are.

    Returns
    -------
    (k,) float32, or the input
    """
    if bits is None:
        return coefficients
    values = coefficients.detach().to(torch.float32)
    largest = (1 << (bits - 1)) - 1
    scale = _round_scale(values.abs().max() / largest)
    scale = torch.where(scale < float(SMALLEST_SCALE), torch.zeros_like(scale), scale)
    # All zeros have no scale: any divisor gives zero.
    quantized = torch.round(values / torch.where(scale > 0, scale, torch.ones_like(scale)))
    rounded = quantized.clamp(-largest, largest) * scale
    # x - x is exactly zero, so the sum is the rounded value and its gradient is that of x.
    return rounded + (coefficients.to(torch.float32) - values)


def _round_scale(scale: torch.Tensor) -> torch.Tensor:
    """Round to 16 significant bits, to nearest even."""
    bits = scale.view(torch.int32)
    return ((bits + 0x7F + ((bits >> 8) & 1)) & -0x100).view(torch.float32)
