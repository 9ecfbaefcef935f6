"""Which stored tensors an adapter's modules and whole tensors are, by the names that it has."""

from __future__ import annotations

from torch import nn

from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.peft.adapted import adapted_layers
from nola_edge.peft.names import PlainNames
from nola_edge.peft.stored import own_name, stored_parts

_SAVED = ".modules_to_save."


def saved_parts(model: nn.Module, adapter_name: str) -> dict[str, TensorPart] | None:
    """Return the parts that an adapter is to record, None if they are not known.

    Parameters
    ----------
    model : nn.Module
        With the adapter.
    adapter_name : str
    """
    get = getattr(model, "get_base_model", None)
    base = get() if callable(get) else model
    plain = PlainNames(base)
    layers = adapted_layers(base, adapter_name)
    streams = {plain(n): layer.nola_factors[adapter_name].module for n, layer in layers.items()}
    found = stored_parts(base, streams, _whole(base, adapter_name))
    return None if found is None else {streams.get(n, n): part for n, part in found.items()}


def _whole(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the tensors that an adapter saves whole: modules, and biases that are trained."""
    plain = PlainNames(model)
    copies = f"{_SAVED}{adapter_name}."
    names = []
    for name, parameter in model.named_parameters():
        if copies in name:
            names.append(plain(name).replace(copies, "."))
        elif _SAVED not in name and name.endswith(".bias") and parameter.requires_grad:
            names.append(own_name(plain(name)))
    return names
