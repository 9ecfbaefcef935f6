"""Layers whose weight is used without calling them, where an adapter has no effect.

It neither changes what the model computes nor trains, but a merge would still add it. Some are
known by the module around them. Of the others it shows in a forward pass of PEFT's: the weight was
read, and the layer was not called.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Mixers of transformers and mamba_ssm whose CUDA kernels take out_proj's weight.
_FUSED_MIXERS = frozenset(
    {
        "BambaMixer",
        "FalconH1Mixer",
        "FalconMambaMixer",
        "GraniteMoeHybridMambaLayer",
        "Mamba",
        "Mamba2",
        "Mamba2Mixer",
        "MambaMixer",
        "NemotronHMamba2Mixer",
        "Zamba2MambaMixer",
    }
)

_state = threading.local()


def refuse_fused(parent: nn.Module, child: str, name: str) -> None:
    """Refuse the output layer of a Mamba mixer, which only its slow path calls.

    Parameters
    ----------
    parent : nn.Module
        What holds the layer.
    child : str
        Its name there.
    name : str
        Its name in the model.

    Raises
    ------
    ValueError
        As PEFT's LoRA does, for the same layers.
    """
    if child == "out_proj" and type(parent).__name__ in _FUSED_MIXERS:
        raise ValueError(
            f"Module {name!r} is incompatible with adapters: the kernels of {type(parent).__name__}"
            " take its weight and never call it, so nothing would train there. Leave it out of "
            "`target_modules` (`exclude_modules=['out_proj']`)."
        )


def warn_of_attention(model: nn.Module, adapter_name: str) -> None:
    """Warn of adapters on the output layers of ``nn.MultiheadAttention``."""
    attentions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    found: dict[str, Any] = {
        f"{name}.out_proj".lstrip("."): module.out_proj
        for name, module in attentions
        if adapter_name in getattr(module.out_proj, "nola_factors", {})
    }
    _warn("torch.nn.MultiheadAttention uses", found)
    for layer in found.values():
        layer.is_known_bypassed = True


@contextmanager
def warn_of_bypassed() -> Iterator[None]:
    """Warn, after a forward pass in this context, of layers that it did not call but used."""
    if torch.compiler.is_compiling() or getattr(_state, "read", None) is not None:
        yield
        return
    _state.read, _state.called = {}, set()
    try:
        yield
        bypassed = [layer for key, layer in _state.read.items() if key not in _state.called]
    finally:
        _state.read = _state.called = None
    found = {}
    for layer in bypassed:
        active = [name for name in layer.active_adapters if name in layer.nola_factors]
        if active and not (layer.merged or layer.disable_adapters or layer.is_known_bypassed):
            found[layer.nola_factors[active[0]].module] = layer
            layer.is_known_bypassed = True
    _warn("the model uses", found)


def note_read(layer: Any) -> None:
    """Take note that the weight of a layer was asked for."""
    if not torch.compiler.is_compiling() and getattr(_state, "read", None) is not None:
        _state.read[id(layer)] = layer


def note_call(layer: Any) -> None:
    """Take note that a layer was called."""
    if not torch.compiler.is_compiling() and getattr(_state, "called", None) is not None:
        _state.called.add(id(layer))


def _warn(who: str, names: Collection[str]) -> None:
    if not names:
        return
    shown = sorted(names)[:3]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    warnings.warn(
        f"The adapter has no effect in {', '.join(map(repr, shown))}{more}: {who} the weight "
        "without calling the layer. It does not train there, yet a merge adds it. Leave it out: "
        f"`exclude_modules={shown}`.",
        stacklevel=2,
    )


class _HandedOut(torch.Tensor):
    """A weight that torch takes for no plain tensor."""


def keep_from_fast_path(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight that ``nn.TransformerEncoderLayer`` does not compute with itself.

    In evaluation mode it calls its linear layers only where one of its tensors is a subclass.
    """
    return weight.detach().as_subclass(_HandedOut)
