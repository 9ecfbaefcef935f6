"""A start of alpha that is aligned with the first gradient; it costs no byte of the adapter.

With beta = 0, the first steps can only use what A's rows catch of the gradient G = dLoss/dW. One
random matrix catches what a random subspace of dimension r does. Among all alpha of the same norm,
the one that maximises ||G A(alpha)^T||^2 is the largest eigenvector of a quadratic form: a few
steps of Lanczos' method find it, and each is one expansion and one projection. (For LoRA's dense
factors, LoRA-GA, arXiv 2407.05000, starts from singular vectors of G in the same spirit.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from nola_edge.errors import ArgumentError, NotFiniteError
from nola_edge.torch import operators
from nola_edge.torch.factors import fresh_coefficients
from nola_edge.torch.weight_gradients import mean_gradients, own_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from nola_edge.torch.factors import Factors

#: Of Lanczos' method, each one expansion and one projection: of random gradients
#: they left less than 0.1 % of the energy.
_STEPS = 12


def align_start(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    num_batches: int = 8,
    loss: Callable[[nn.Module, Any], torch.Tensor] = own_loss,
    max_bytes: int = 4 << 30,
    progress: bool = True,
) -> dict[str, float]:
    """Let every adapter's alpha begin where A catches most of the first gradient.

    Call it between adding a fresh adapter and training. The model's function stays as it is, and so
    do its gradients, random generators and mode. With several processes, as under DDP, each
    gives its own batches, and all get the same start.

    Parameters
    ----------
    model : nn.Module
        With :class:`NolaLinear` layers, or a PEFT model with an active NOLA adapter. Its base may
        be quantised, in any dtype, and checkpoint its activations.
    batches : iterable
        A data loader, or a list; batches are moved to the model's device.
    num_batches : int
        At most so many of them are used.
    loss : callable
        (model, batch) -> scalar. Default: ``model(**batch).loss``.
    max_bytes : int
        For gradients in fp32: modules whose weights have more elements than that holds are aligned
        group by group, each with a pass of its own over the batches.
    progress : bool
        Show a bar.

    Returns
    -------
    dict of str to float
        Module -> the energy ||G A^T||^2 that A catches, as a multiple of what it caught before;
        1 where the gradient is zero, and the start remains.

    Raises
    ------
    ArgumentError
        If there is no adapter, one is not fresh or split over processes, or there is no batch.
    NotFiniteError
        If a gradient is infinite or NaN. Nothing was changed then.
    """
    layers = _alignable(model)
    used = list(islice(batches, num_batches))
    if not used:
        raise ArgumentError("are none; give at least one", field="batches")
    starts: list[tuple[torch.Tensor, float]] = []
    groups = _groups(layers, max_bytes)
    bar = tqdm(total=len(groups) * len(used), desc="aligning", unit="batch", disable=not progress)
    with bar:
        for group in groups:
            weights = [(layer.module, *layer.shape) for layer in group]
            gradients = mean_gradients(model, weights, used, loss=loss, done=bar.update)
            starts += map(_aligned, group, gradients)
    for layer, (alpha, _) in zip(layers, starts, strict=True):
        layer.take(alpha)
    return {layer.factors.module: gain for layer, (_, gain) in zip(layers, starts, strict=True)}


@dataclass(frozen=True, eq=False)
class _Layer:
    """One adapter on one layer."""

    module: Any
    factors: Factors
    alpha: nn.Parameter
    beta: nn.Parameter
    holder: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.out_features, self.factors.in_features

    def check(self) -> None:
        name = self.factors.module
        if any(hasattr(v, "device_mesh") for v in (self.alpha, self.module.base_layer.weight)):
            raise ArgumentError("is split over processes; call align_start before that", field=name)
        if self.alpha.is_meta or self.module.base_layer.weight.is_meta:
            raise ArgumentError("has no values yet; load the model first", field=name)
        if self.beta.detach().any():
            raise ArgumentError(
                "has been trained, and another start would undo that; add a fresh adapter",
                field=name,
            )

    def take(self, alpha: torch.Tensor) -> None:
        with torch.no_grad():
            self.alpha.copy_(alpha)
        self.holder.start = "aligned"


def _alignable(model: nn.Module) -> list[_Layer]:
    layers = [
        _Layer(module, *request)
        for module in model.modules()
        for request in (getattr(module, "start_requests", list)())
    ]
    if not layers:
        raise ArgumentError(
            "has no active NOLA adapter: call get_peft_model first, or put NolaLinear layers into "
            "it",
            field="model",
        )
    for layer in layers:
        layer.check()
    return layers


def _groups(layers: Sequence[_Layer], max_bytes: int) -> list[list[_Layer]]:
    groups: list[list[_Layer]] = [[]]
    room = max_bytes
    for layer in layers:
        nbytes = 4 * math.prod(layer.shape)
        if groups[-1] and nbytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(layer)
        room -= nbytes
    return groups


@torch.no_grad()
def _aligned(layer: _Layer, gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return alpha and its gain, the same in every process."""
    if not bool(gradient.isfinite().all()):
        raise NotFiniteError(
            "has a gradient that is not finite; look at its batches, or at the dtype",
            field=layer.factors.module,
        )
    alpha, gain = aligned_alpha(layer.factors, gradient, len(layer.alpha))
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(alpha, 0)
    return alpha, gain


@torch.no_grad()
def aligned_alpha(
    factors: Factors, gradient: torch.Tensor, num_basis: int
) -> tuple[torch.Tensor, float]:
    """Return the coefficients whose A catches most of a gradient, and how much more that is.

    Parameters
    ----------
    factors : Factors
        Whole, not a shard of them.
    gradient : (out, in) float32
    num_basis : int
        k.

    Returns
    -------
    alpha : (k,) float32
        Of norm sqrt(k / (3 in)), which gives A the variance of the unit start.
    gain : float
        ||G A^T||^2 as a multiple of the unit start's; 1 for a gradient of zeros, where alpha is
        that start.
    """
    start = fresh_coefficients(num_basis, 0, factors.in_features)[0].to(gradient.device)
    # Scaled, as squares of small gradients underflow.
    gradient = gradient / gradient.abs().max().clamp_min(torch.finfo(torch.float32).tiny)

    def caught(alpha: torch.Tensor) -> torch.Tensor:
        return gradient @ factors.a(alpha).T

    def image(alpha: torch.Tensor) -> torch.Tensor:
        return operators.project(caught(alpha).T @ gradient, num_basis, factors.a_source)

    first = float(caught(start).double().square().sum())
    if first == 0:
        return start, 1.0
    alpha = _largest_eigenvector(image, start) * start.norm()
    return alpha, float(caught(alpha).double().square().sum()) / first


def _largest_eigenvector(
    image: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> torch.Tensor:
    """Return that of a symmetric map, of norm 1, by Lanczos' method with orthogonalisation."""
    basis, images = [start / start.norm()], [image(start / start.norm())]
    for _ in range(min(_STEPS, len(start)) - 1):
        known = torch.stack(basis)
        new = images[-1]
        for _ in range(2):  # once leaves what rounding makes of a small remainder
            new = new - known.T @ (known @ new)
        if float(new.norm()) <= 1e-5 * float(images[-1].norm()):
            break  # the space is complete
        basis.append(new / new.norm())
        images.append(image(basis[-1]))
    known = torch.stack(basis).double()
    small = known @ torch.stack(images).double().T
    vector = known.T @ torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1]
    vector = vector * vector[vector.abs().argmax()].sign()  # its sign is free
    return (vector / vector.norm()).float()
