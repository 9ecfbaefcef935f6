"""A warning where an optimiser's learning rate is too small for coefficients.

An adapter that does not train looks like one that trains slowly: nothing fails. The rate is in
the optimiser, which the tuner never sees, except from a hook that torch calls before each step.
It looks at each optimiser once, before its first step.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

#: Rate times scaling: below this Adam is far behind LoRA in the steps that people train for
#: (docs/training.md).
_SMALLEST_STEP = 1e-3
_ADVISED_STEP = 4e-3

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
    if torch.compiler.is_compiling() or not _waiting:
        return
    found: tuple[float, float] | None = None
    with contextlib.suppress(Exception):  # an optimiser may be anything, and has to go on
        found = _rate_and_scaling(optimizer)
    if found is None:
        return
    rate, scaling = found
    if rate * scaling < _SMALLEST_STEP:
        advised = _ADVISED_STEP / scaling
        warnings.warn(
            f"{type(optimizer).__name__}'s learning rate of {rate:.2g} hardly moves NOLA's "
            f"coefficients: set it to about {advised:.0e} "
            f"(`TrainingArguments(learning_rate={advised:.0e})`).",
            stacklevel=2,
        )


def _rate_and_scaling(optimizer: Optimizer) -> tuple[float, float] | None:
    """Return the largest rate, without warm-up, of layers that wait, and their largest scaling.

    They wait no more. None: this is not an Adam that trains one of them at a rate of its own.
    """
    if optimizer in _seen:
        return None
    _seen.add(optimizer)
    if "adam" not in type(optimizer).__name__.lower():
        return None
    groups = [{id(values) for values in group["params"]} for group in optimizer.param_groups]
    held = set().union(*groups)
    found = [layer for layer in _waiting if not held.isdisjoint(_coefficients(layer))]
    if not found:
        return None
    _waiting.difference_update(found)
    wanted = set().union(*map(_coefficients, found))
    pairs = zip(_full_rates(optimizer), groups, strict=True)
    rates = [rate for rate, group in pairs if not wanted.isdisjoint(group)]
    scaling = max(s for layer in found for s in layer.nola_scaling.values())
    return max(((rate, scaling) for rate in rates if rate is not None), default=None)


def _coefficients(layer: Any) -> set[int]:
    # As they are now: FSDP2, and a move to another device, put other parameters into the layers.
    return {id(values) for part in (layer.nola_alpha, layer.nola_beta) for values in part.values()}


def _full_rates(optimizer: Optimizer) -> list[float | None]:
    """Return the rate of each group without warm-up; None where the optimiser finds its own."""
    # "initial_lr" is put there by a scheduler of torch's.
    given = [group.get("initial_lr", group.get("lr")) for group in optimizer.param_groups]
    rates = [None if rate is None else float(rate) for rate in given]
    if any("initial_lr" in group for group in optimizer.param_groups) or len(set(rates)) > 1:
        return rates
    # Warm-up by hand begins low too; the optimiser was made with the rate that it leads to.
    return [None if rate is None else max(rate, _rate_made_with(optimizer)) for rate in rates]


def _rate_made_with(optimizer: Optimizer) -> float:
    """Return the rate that the caller chose for every group; 0 if it is nobody's choice."""
    rate = optimizer.defaults.get("lr")
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    is_chosen = parameter is None or parameter.default != rate
    return float(rate) if rate is not None and is_chosen else 0.0
