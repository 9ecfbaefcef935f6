"""Which layers of a model an adapter is on, and whether it belongs there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from nola_edge.adapters.fingerprints import modules_fingerprint, shapes_fingerprint
from nola_edge.peft.config import NolaConfig
from nola_edge.peft.layer import NolaLinearLayer
from nola_edge.peft.shared import refuse_shared_weights


def adapted_layers(model: nn.Module, adapter_name: str) -> dict[str, NolaLinearLayer]:
    """Return the layers that an adapter is on, by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NolaLinearLayer) and adapter_name in module.nola_factors
    }


def stream_shapes(
    layers: Mapping[str, NolaLinearLayer], adapter_name: str
) -> dict[str, tuple[int, int]]:
    """Return the names that the streams were made of, with (out_features, in_features)."""
    factors = [layer.nola_factors[adapter_name] for layer in layers.values()]
    return {f.module: (f.out_features, f.in_features) for f in factors}


def take_out(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter, and the layers that it alone is on."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, NolaLinearLayer) or adapter_name not in layer.nola_factors:
                continue
            if len(layer.nola_factors) == 1:
                setattr(parent, name, layer.base_layer)
            else:
                layer.delete_adapter(adapter_name)


def check_injected(model: nn.Module, adapter_name: str, config: NolaConfig) -> None:
    """Check an adapter that was put into a model, and note how its layers store their weights.

    Raises
    ------
    ValueError
        If the modules are not those that the adapter's streams were made for, Linear and Conv1D
        layers would share an adapter, or another module uses a weight too.
    """
    layers = adapted_layers(model, adapter_name)
    if not layers:
        return
    if len({layer.transposed for layer in layers.values()}) > 1:
        raise ValueError(
            "One NOLA adapter cannot adapt both Linear and Conv1D layers: it records a single "
            "`fan_in_fan_out`. Use two adapters."
        )
    refuse_shared_weights(model, layers)
    transposed = next(iter(layers.values())).transposed
    if config.fan_in_fan_out and not transposed:
        warnings.warn(
            "fan_in_fan_out is set to True but the target modules are `torch.nn.Linear`. "
            "Setting fan_in_fan_out to False.",
            stacklevel=4,
        )
    config.fan_in_fan_out = transposed
    _check_fingerprints(config, stream_shapes(layers, adapter_name))


def count_in_unit(model: nn.Module, adapter_name: str, config: NolaConfig) -> None:
    """Choose an adapter's unit of beta, if it has none, and scale its layers by it."""
    layers = adapted_layers(model, adapter_name)
    if not layers:
        return
    config.choose_unit(stream_shapes(layers, adapter_name))
    for layer in layers.values():
        layer.nola_scaling[adapter_name] = config.scaling


def _check_fingerprints(config: NolaConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
    found = modules_fingerprint(shapes)
    first = min(shapes)
    if config.modules_fingerprint not in (None, found):
        raise ValueError(
            f"The adapter was made for other module names than this model has "
            f"(`modules_fingerprint` is {config.modules_fingerprint}, this model gives "
            f"{found}; the first of {len(shapes)} modules here is "
            f"{first!r}). Its random matrices follow from "
            "the names, so it would change the weights at random. If modules were renamed, "
            "set `module_aliases` in the config to {new prefix: old prefix}."
        )
    if config.shapes_fingerprint not in (None, shapes_fingerprint(shapes)):
        raise ValueError(
            "The adapter was made for modules of other shapes (`shapes_fingerprint`; here "
            f"{first!r} is {shapes[first][0]} x {shapes[first][1]}). Which random number an "
            "element gets follows from its place, so it would change the weights at random."
        )
