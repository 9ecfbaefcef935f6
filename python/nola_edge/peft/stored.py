"""What the files of a transformers model call its weights.

transformers renames, joins and splits tensors between files and memory. Nothing is known here of
any architecture: the conversion that ``save_pretrained`` does is done to stand-ins. Tensors without
memory tell what is only renamed. Of what is not, matrices whose elements are their own numbers tell
where each of them goes, for one layer at a time.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import OTHERWISE, WEIGHT, TensorPart
from nola_edge.adapters.whole_tensors import BASE_LAYER
from nola_edge.peft.names import PlainNames
from nola_edge.torch.linear import is_conv1d

_Tensors = dict[str, torch.Tensor]


def stored_tensors(model: nn.Module, modules: Iterable[str] | None = None) -> dict[str, str]:
    """Return which stored tensors are the weights of a model's layers, if names do not say so.

    A NOLA adapter records the same when it is saved. For an adapter that does not, such as a LoRA
    saved by PEFT, pass the result as ``rename=`` to the functions that merge into files.

    Parameters
    ----------
    model : nn.Module
        As returned by ``from_pretrained``, adapted by PEFT or not.
    modules : iterable of str, optional
        Names of layers; default: all Linear and Conv1D.

    Returns
    -------
    dict
        Module -> name of a tensor, or ``NAME[START:STOP]`` for outputs in it. Empty for a model
        that is not from transformers.
    """
    if modules is None:
        modules = _layers(model)
    found = stored_parts(model, modules) or {}
    return {module: str(part) for module, part in found.items() if part != OTHERWISE}


def stored_parts(
    model: nn.Module, modules: Iterable[str], tensors: Iterable[str] = ()
) -> dict[str, TensorPart] | None:
    """Return which stored tensors are modules' weights, and other tensors.

    Parameters
    ----------
    model : nn.Module
    modules : iterable of str
        Names of Linear and Conv1D layers.
    tensors : iterable of str
        Names of other parameters.

    Returns
    -------
    dict or None
        Module or tensor -> part, if its name does not say so; OTHERWISE if it is not part of one
        tensor. None if nothing is known.
    """
    base = _transformers_model(model)
    if base is None:
        return None
    layers = _layers(base)
    try:
        conversion = _Conversion(base)
        found = {
            module: conversion.part(module + WEIGHT, is_conv1d(layers[module]))
            for module in modules
            if module in layers
        }
        names = StoredNames(found)
        found = {m: part for m, part in found.items() if part != TensorPart(m + WEIGHT)}
        for tensor in tensors:
            part = conversion.part(tensor, transposed=False)
            if part != names.tensor(tensor):
                found[tensor] = part
    except Exception:  # whatever transformers says of a model it cannot save
        return None
    return found


def _transformers_model(model: nn.Module) -> Any:
    """Return the model that transformers loaded, if it is one."""
    transformers = sys.modules.get("transformers")
    get = getattr(model, "get_base_model", None)
    base = get() if callable(get) else model
    is_one = transformers is not None and isinstance(base, transformers.PreTrainedModel)
    return base if is_one else None


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be adapted, by their names without wrappers."""
    plain = PlainNames(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module):
            found[plain(name).removesuffix(BASE_LAYER)] = module
    return found


def own_name(name: str) -> str:
    """Return the name of a parameter without PEFT's wrappers."""
    return name.replace(f"{BASE_LAYER}.", ".").replace(".original_module.", ".")


def _stand_ins(model: nn.Module) -> _Tensors:
    """Return what the model has by itself, without memory, by names without wrappers."""
    plain = PlainNames(model)
    return {
        own_name(plain(name)): torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if ".modules_to_save." not in name
    }


def _layer(name: str) -> str:
    """Return the beginning of a name up to its first number: conversions stay within a layer."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[: first + 1])


class _Conversion:
    """The conversion of a model's tensors that its ``save_pretrained`` does."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inputs = _stand_ins(model)
        self._outputs = self._convert(self._inputs)
        self._renamed = {id(tensor): name for name, tensor in self._outputs.items()}
        self._layers: dict[str, list[str]] = defaultdict(list)
        for name in self._inputs:
            if id(self._inputs[name]) not in self._renamed:
                self._layers[_layer(name)].append(name)
        self._numbered: dict[tuple[str, ...], tuple[_Tensors, Mapping[str, int]]] = {}

    def part(self, name: str, transposed: bool) -> TensorPart:
        """Return where a parameter is stored; by its own name, if the model has none of it."""
        if name not in self._inputs:
            return TensorPart(name)
        new = self._renamed.get(id(self._inputs[name]))
        if new is not None:
            return TensorPart(new)
        return self._converted_part(name, transposed) or OTHERWISE

    def _convert(self, tensors: Mapping[str, torch.Tensor]) -> _Tensors:
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self._model, dict(tensors)))

    def _converted_part(self, name: str, transposed: bool) -> TensorPart | None:
        outputs, begins = self._of_layer(name)
        if name not in begins:
            return None
        shape = self._inputs[name].shape
        begin, end = begins[name], begins[name] + shape.numel()
        for new, numbers in outputs.items():
            if bool(((numbers >= begin) & (numbers < end)).any()):
                # By itself a layer must be stored as it is in the whole model.
                if new not in self._outputs or self._outputs[new].shape != numbers.shape:
                    return None
                return _find(new, numbers - begin, shape, transposed)
        return None

    def _of_layer(self, name: str) -> tuple[_Tensors, Mapping[str, int]]:
        """Return the stored tensors of those stored with one, and each one's first number."""
        together = tuple(self._stored_with(name))
        if not all(self._inputs[other].is_floating_point() for other in together):
            return {}, {}  # quantised: the sizes are not those in the files
        if together not in self._numbered:
            self._numbered.clear()  # one layer's at a time
            inputs, begins, count = {}, {}, 0
            for other in together:
                shape = self._inputs[other].shape
                begins[other] = count
                inputs[other] = torch.arange(count, count + shape.numel()).reshape(shape)
                count += shape.numel()
            self._numbered[together] = self._tried(inputs), begins
        return self._numbered[together]

    def _stored_with(self, name: str) -> list[str]:
        mine = self._alone(name)
        return [other for other in self._layers[_layer(name)] if mine & self._alone(other)]

    def _alone(self, name: str) -> set[str]:
        """Return the names of the stored tensors that a tensor has a part in."""
        return set(self._tried({name: self._inputs[name]}))

    def _tried(self, tensors: Mapping[str, torch.Tensor]) -> _Tensors:
        """Convert some of the tensors, which may want others beside them: then nothing."""
        try:
            return self._convert(tensors)
        except Exception:  # whatever transformers says of a part of a model
            return {}


def _find(
    tensor: str, numbers: torch.Tensor, shape: torch.Size, transposed: bool
) -> TensorPart | None:
    """Return the lines of a stored tensor that are a numbered parameter, if they are."""
    if numbers.dim() != len(shape) or len(shape) > 2:
        return None
    wanted = torch.arange(shape.numel()).reshape(shape)
    if len(shape) == 1:
        numbers, wanted = numbers[:, None], wanted[:, None]
    if transposed:
        numbers, wanted = numbers.T, wanted.T
    start = int((numbers == 0).any(1).int().argmax())
    stop = start + len(wanted)
    if not torch.equal(numbers[start:stop], wanted):
        return None
    return TensorPart(tensor) if len(numbers) == len(wanted) else TensorPart(tensor, (start, stop))
