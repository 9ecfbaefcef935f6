"""NOLA as functions of tensors, for your own training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from nola_edge.arguments import integer, pair
from nola_edge.errors import ArgumentError
from nola_edge.torch import operators
from nola_edge.torch.factors import Factors, checked_seed
from nola_edge.torch.operators import signed_stream
from nola_edge.torch.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from nola_edge.ops import Basis, Range


def expand(
    coefficients: torch.Tensor,
    *,
    seed: int,
    stream: int,
    shape: tuple[int, int],
    basis: Basis = "rademacher",
    rows: Range | None = None,
    cols: Range | None = None,
) -> torch.Tensor:
    """Combine random matrices: ``g * sum_i coefficients[i] * basis_i`` (NOLA, equation 2).

    Differentiable any number of times, and traceable by :func:`torch.compile`. The basis is
    regenerated and never stored, in the forward and in the backward pass.

    Parameters
    ----------
    coefficients : (k,) floating point
    seed, stream, shape, basis, rows, cols
        As for :func:`nola_edge.expand`.

    Returns
    -------
    (stop - start of rows, stop - start of cols) float32
        With the bits of :func:`nola_edge.expand`.

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message begins with its name.
    """
    return operators.expand(coefficients, _source(seed, stream, basis, shape, rows, cols))


def project(
    grad: torch.Tensor,
    *,
    seed: int,
    stream: int,
    num_basis: int,
    basis: Basis = "rademacher",
    shape: tuple[int, int] | None = None,
    rows: Range | None = None,
    cols: Range | None = None,
) -> torch.Tensor:
    """Project a gradient on the basis, the adjoint of :func:`expand`.

    Parameters
    ----------
    grad : (rows, cols) floating point
    num_basis : int
        k.
    seed, stream, basis, shape, rows, cols
        As for :func:`nola_edge.project`.

    Returns
    -------
    (k,) float32

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message begins with its name.
    """
    if shape is None:
        if grad.dim() != 2:
            raise ArgumentError(f"must have 2 dimensions, got {tuple(grad.shape)}", field="grad")
        shape = (grad.shape[0], grad.shape[1])
    return operators.project(grad, num_basis, _source(seed, stream, basis, shape, rows, cols))


def _source(
    seed: int,
    stream: int,
    basis: Basis,
    shape: tuple[int, int],
    rows: Range | None,
    cols: Range | None,
) -> operators.Source:
    """Return the operators' arguments after the tensor; a slice that is not given is whole."""
    if not torch.compiler.is_compiling():  # where sizes may be symbols
        shape = pair("shape", shape)
        rows = None if rows is None else pair("rows", rows)
        cols = None if cols is None else pair("cols", cols)
        integer("stream", stream, 0, 1 << 64)
    rows = (0, shape[0]) if rows is None else rows
    cols = (0, shape[1]) if cols is None else cols
    return checked_seed(seed), signed_stream(stream), basis, shape, rows, cols


def nola_delta(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    shard: Shard = WHOLE,
) -> torch.Tensor:
    """Return ``scaling * (x A^T) B^T``, what an adapter adds to a linear layer's output.

    Parameters
    ----------
    x : (..., in)
    a : (r, in)
    b : (out, r)
        Of the same dtype as `x` and `a`, unless autocast casts all three.
    scaling : float
        Applied to the narrow product.
    shard : Shard
        If the layer is split over processes.

    Returns
    -------
    (..., out)
    """
    hidden = shard.reduce(F.linear(x, a))
    return F.linear(hidden * scaling, b)


def nola_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    module: str,
    r: int,
    seed: int,
    scaling: float,
    basis: Basis = "rademacher",
    dropout: float = 0.0,
    fan_in_fan_out: bool = False,
) -> torch.Tensor:
    """Apply a linear layer with a NOLA adapter: ``x W^T + bias + scaling * (x A^T) B^T``.

    Neither a basis matrix nor the product B A is ever materialised.

    Parameters
    ----------
    x : (..., in)
    weight : (out, in), or (in, out) if `fan_in_fan_out`
    bias : (out,) or None
    alpha : (k,) floating point
        Coefficients of A.
    beta : (l,) floating point
        Coefficients of B.
    module : str
        Name from which the streams follow.
    r : int
        Rank.
    seed : int
    scaling : float
        s, usually lora_alpha / r.
    basis : {"rademacher", "uniform"}
    dropout : float
        Probability with which an element of the adapter's input is dropped; 0 when not training.
    fan_in_fan_out : bool
        The weight is stored transposed.

    Returns
    -------
    (..., out) of the dtype of `x`
    """
    if fan_in_fan_out:
        weight = weight.T
    out_features, in_features = weight.shape
    factors = Factors(module, r, in_features, out_features, seed, basis)
    a, b = factors.a(alpha).to(x.dtype), factors.b(beta).to(x.dtype)
    dropped = F.dropout(x, dropout) if dropout else x
    return F.linear(x, weight, bias) + nola_delta(dropped, a, b, scaling)
