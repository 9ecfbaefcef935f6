"""Weights that another module uses too.

Unmerged, an adapter changes what one layer computes; merged, it changes a weight, and with it
whatever else uses it. The two agree only where nothing else does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

from nola_edge.peft.layer import NolaLinearLayer


def refuse_shared_weights(model: nn.Module, layers: Mapping[str, NolaLinearLayer]) -> None:
    """Refuse layers whose weight is also another module's, or that have a second place.

    Parameters
    ----------
    model : nn.Module
    layers : mapping of str to NolaLinearLayer
        The adapted layers, by their names in the model.

    Raises
    ------
    ValueError
        Naming both modules.
    """
    users = _users(model)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        held = users[_identity(weight)] if isinstance(weight, nn.Parameter) else []
        found = [*held, *users[id(base)]]
        others = sorted({user for user in found if not f"{user}.".startswith(f"{name}.")})
        if others:
            raise ValueError(
                f"The weight of {name!r} is also that of {others[0].removesuffix('.base_layer')!r}"
                ": merged, the adapter would change both, and unmerged it changes one. Leave the "
                f"layer out (`exclude_modules=[{name!r}]`), or untie the two first: give the layer "
                "a copy of the weight (of an output layer that is tied to the embedding: "
                "`tie_word_embeddings=False`)."
            )


def _users(model: nn.Module) -> Mapping[object, list[str]]:
    """Return the names of the modules that hold each parameter, and the places of each module."""
    users: dict[object, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users[_identity(parameter)].append(name)
        for child, held in module._modules.items():
            users[id(held)].append(f"{name}.{child}".lstrip("."))
    return users


def _identity(parameter: torch.Tensor) -> object:
    """Tell parameters of the same memory to be the same, whatever objects hold it."""
    if parameter.is_meta or type(parameter.data) is not torch.Tensor or not parameter.numel():
        return id(parameter)
    return parameter.device, parameter.data_ptr()
