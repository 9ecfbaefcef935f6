"""Gradients of linear layers' weights that need not be trainable, nor floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from nola_edge.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    #: A module that is called with x (..., in) and returns (..., out); out, in.
    Layer = tuple[nn.Module, int, int]

_SEED = 0


def own_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss that a model of transformers computes for a batch with labels.

    Raises
    ------
    ArgumentError
        If it computes none.
    """
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ArgumentError(
            "returns no loss for a batch: give batches labels, or pass `loss`", field="model"
        )
    return cast("torch.Tensor", loss)


def mean_gradients(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    *,
    loss: Callable[[nn.Module, Any], torch.Tensor] = own_loss,
    done: Callable[[], Any] = bool,
) -> list[torch.Tensor]:
    """Return dLoss/dW of layers that are, or wrap, a linear one.

    Neither the model nor gradients, random generators or modes change. Something in each layer, or
    before it, must be trained.

    Parameters
    ----------
    model : nn.Module
        In DDP or compiled, or not.
    layers : sequence of (module, out_features, in_features)
        Linear ones, or what wraps them.
    batches : sequence
        This process's; tensors are moved to the model's device.
    loss : callable
        (model, batch) -> scalar.
    done : callable
        Called after each batch.

    Returns
    -------
    list of (out, in) float32
        The mean over the batches of all processes; zeros for a layer that no batch went through.
    """
    sums = [
        torch.zeros(out_features, in_features, device=next(module.parameters()).device)
        for module, out_features, in_features in layers
    ]
    inner = _unwrapped(model)
    device = next(inner.parameters()).device
    with _untouched(inner), _tapped(layers, sums):
        for batch in batches:
            loss(inner, _moved(batch, device)).backward()
            done()
    return [_mean(total, len(batches)) for total in sums]


def _mean(total: torch.Tensor, count: int) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        count *= dist.get_world_size()
    return total / count


def _unwrapped(model: Any) -> nn.Module:
    """Return the model inside DDP, which would average other gradients, or a compiled one."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return cast("nn.Module", model)
        model = inner


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Keep gradients and random generators as they are; dropout is the same each time."""
    gradients = [(p, p.grad) for p in model.parameters() if p.requires_grad]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _tapped(layers: Sequence[Layer], sums: Sequence[torch.Tensor]) -> Iterator[None]:
    """Have each backward pass add the gradients of the layers' weights to sums."""
    with ExitStack() as stack:
        for (module, _, _), total in zip(layers, sums, strict=True):

            def tap(
                _: Any, inputs: Any, named: Any, output: torch.Tensor, total: Any = total
            ) -> Any:
                if not output.requires_grad:  # the first of two passes, with checkpointing
                    return output
                x = next(iter((*inputs, *named.values())))
                return _Tap.apply(output, x.detach(), total)

            hook = module.register_forward_hook(tap, with_kwargs=True)
            stack.callback(hook.remove)
        yield


class _Tap(torch.autograd.Function):
    """Hand an output on; on the way back add dY^T X to a sum.

    The input is saved as any other is, so that checkpointing and offloading of activations apply.
    """

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, x: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.total = total
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            ctx.total.addmm_(grads[0].flatten(0, -2).float().T, x.flatten(0, -2).float())
        return grads[0], None, None
