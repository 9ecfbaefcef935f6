"""A warning where an optimiser's learning rate is too small for coefficients.

An adapter that does not train looks like one that trains slowly: nothing fails. The rate is in
the optimiser, which the tuner never sees, except from a hook that torch calls before each step.
It looks at each optimiser once, before its first step.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

#: Below this Adam is far behind LoRA in the steps that people train for (docs/training.md).
SMALLEST_RATE = 5e-4
ADVISED_RATE = 2e-3

_waiting: WeakSet[Any] = WeakSet()  # layers whose optimiser has not been seen
_seen: WeakSet[Optimizer] = WeakSet()


def watch_rate(layers: Iterable[Any]) -> None:
    """Warn, at the first step of the optimiser that has these layers' coefficients, of its rate.

    Parameters
    ----------
    layers : iterable of NolaLinearLayer
    """
    _register()
    _waiting.update(layers)
    _seen.clear()  # to one of them these may have been added


@functools.cache
def _register() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if torch.compiler.is_compiling() or not _waiting or optimizer in _seen:
        return
    _seen.add(optimizer)
    rates = _rates(optimizer)
    if not rates:
        return
    _waiting.clear()
    if "adam" in type(optimizer).__name__.lower() and max(rates) < SMALLEST_RATE:
        warnings.warn(
            f"{type(optimizer).__name__}'s learning rate of {max(rates):.2g} hardly moves NOLA's "
            "coefficients, which want a larger one than LoRA's matrices: set it to about "
            f"{ADVISED_RATE:.0e} (`TrainingArguments(learning_rate={ADVISED_RATE:.0e})`).",
            stacklevel=2,
        )


def _rates(optimizer: Optimizer) -> list[float]:
    """Return the rates of the groups with coefficients of layers that wait, without warm-up."""
    # As they are now: FSDP2, and a move to another device, put other parameters into the layers.
    coefficients = {
        id(values)
        for layer in _waiting
        for part in (layer.nola_alpha, layer.nola_beta)
        for values in part.values()
    }
    return [
        _full_rate(group, optimizer.defaults)
        for group in optimizer.param_groups
        if any(id(values) in coefficients for values in group["params"])
    ]


def _full_rate(group: dict[str, Any], defaults: dict[str, Any]) -> float:
    if "initial_lr" in group:  # put there by a scheduler of torch's
        return float(group["initial_lr"])
    # Warm-up by hand begins low too; the optimiser was made with the rate it leads to.
    return max(float(group.get("lr", math.inf)), float(defaults.get("lr", 0.0)))
