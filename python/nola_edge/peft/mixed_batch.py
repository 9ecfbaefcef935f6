"""An adapter for each sample of a batch: ``model(..., adapter_names=["french", "__base__"])``.

PEFT's LoRA defined this; names, checks and messages are the same here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from nola_edge.peft.layer import NolaLinearLayer

#: The name that stands for no adapter.
BASE = "__base__"
_REPEATING = ("num_beams", "num_return_sequences")


@contextmanager
def mixed_batch(model: nn.Module, names: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """Have every layer of a model apply, in this context, the adapters that samples name.

    Parameters
    ----------
    model : nn.Module
        The tuner, whose attribute ``model`` is the base model.
    names : list of str
        One for each sample, in order; ``"__base__"`` for none.
    call : mapping
        Keyword arguments of the call of ``forward`` or ``generate``. Where ``generate`` repeats
        each sample, for its beams or for several sequences, which the model's own configuration of
        generation may ask for too, the names are repeated alike, except in an encoder, which sees
        the samples as they are.

    Raises
    ------
    TypeError
        If `names` is not a list of str.
    ValueError
        If no layer has an adapter of a name, or the model is in training mode. A layer refuses a
        batch of another size, and one that meets merged weights.
    """
    _check(model, names)
    repeated = [name for name in names for _ in range(_copies(model.model, call))]
    encoder = set(_encoder(model.model))
    handles = []
    try:
        for module in model.modules():
            if isinstance(module, NolaLinearLayer | AuxiliaryTrainingWrapper):
                give = partial(_give_names, names, names if module in encoder else repeated)
                handles.append(module.register_forward_pre_hook(give, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(model: nn.Module, names: Any) -> None:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`adapter_names` must be a list of str, one for each sample, not {names!r}."
        )
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    layers = (module for module in model.modules() if isinstance(module, NolaLinearLayer))
    known = {BASE}.union(*(layer.nola_factors for layer in layers))
    if unknown := sorted(set(names) - known):
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")


def _copies(base: Any, call: Mapping[str, Any]) -> int:
    """Return how many rows ``generate`` makes of each sample."""
    configs = [call.get("generation_config"), getattr(base, "generation_config", None)]
    found = [1]
    for name in _REPEATING:
        asked = [call.get(name), *(getattr(config, name, None) for config in configs)]
        found.append(next((n for n in asked if isinstance(n, int)), 1))
    return max(found)


def _encoder(base: Any) -> Sequence[nn.Module]:
    """Return the modules of an encoder that has a decoder after it."""
    encoder = base.get_encoder() if hasattr(base, "get_encoder") else None
    return [] if encoder is None or encoder is base else list(encoder.modules())


def _give_names(
    names: Sequence[str],
    repeated: Sequence[str],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # A plain forward pass repeats nothing, whatever the model's configuration of generation says.
    given = names if args and len(args[0]) == len(names) else repeated
    return args, {**kwargs, "adapter_names": list(given)}
