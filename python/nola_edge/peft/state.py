"""Between the parameters of a live model and the tensors of an adapter file.

Three things differ: with quantised coefficients the file holds packed integers and a scale, with
``module_aliases`` it keeps the names that its streams were made with, and it knows no wrappers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from nola_edge.adapters.nola_files import ALPHA, BETA, SCALE, quantized_tensors
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.quantize import Quantized, dequantize, packed_size, scale_size
from nola_edge.peft.config import NolaConfig, replace_prefix
from nola_edge.torch.sharding import whole_tensor

_Tensors = dict[str, torch.Tensor]


def select_coefficients(
    modules: Collection[str], state: Mapping[str, torch.Tensor], config: NolaConfig, adapter: str
) -> _Tensors:
    """Pick an adapter's coefficients from the state of a model; all of them, or none.

    Parameters
    ----------
    modules : collection of str
        The adapted layers, with the prefix that their tensors have.
    state : mapping of name to tensor
        By names without wrappers. A state that was selected before, whose names lack the adapter's,
        may be handed over again.
    config : NolaConfig
    adapter : str

    Raises
    ------
    ValueError
        If those of a layer are missing, or are not all there.
    """
    found: _Tensors = {}
    for module in modules:
        for part, count in ((ALPHA, config.num_basis_a), (BETA, config.num_basis_b)):
            names = [f"{module}{part}{end}" for end in (f".{adapter}", "", SCALE)]
            held = {name: state[name] for name in names if name in state}
            if not held:
                raise _incomplete(f"{module}{part}", "is not in it", modules, state)
            values = next(iter(held.values()))
            if values.dtype != torch.uint8 and tuple(values.shape) != (count,):
                what = f"has the shape {tuple(values.shape)}, not ({count},)"
                raise _incomplete(f"{module}{part}", what, modules, state)
            found.update(held)
    return found


def _incomplete(
    name: str, what: str, modules: Collection[str], state: Mapping[str, torch.Tensor]
) -> ValueError:
    layers = f"{len(modules)} NOLA layer" + ("s" if len(modules) > 1 else "")
    return ValueError(
        f"The state to be saved lacks coefficients: {name!r} {what}, of {layers} in the model and "
        f"{len(state)} tensors in the state. Pass the state_dict() of the model itself, whole and "
        "gathered from all processes, or none."
    )


def to_stored(tensors: _Tensors, config: NolaConfig, adapter_name: str) -> _Tensors:
    """Return parameters, whose names end in the adapter's, as a file holds them."""
    stored: _Tensors = {}
    for name, values in tensors.items():
        if ".original_module." in name or ".modules_to_save." in name:
            continue  # biases of a module that is saved whole, under its own name
        target = _rename(name, config, to_file=True)
        bits = config.coefficient_bits
        if bits is None or not name.endswith((f"{ALPHA}.{adapter_name}", f"{BETA}.{adapter_name}")):
            stored[target] = values
            continue
        numbers = whole_tensor(values).float().cpu().numpy()
        exact_first = bool(config.exact_first_alpha) and name.endswith(f"{ALPHA}.{adapter_name}")
        packed = quantized_tensors(target, numbers, bits, exact_first)
        stored.update({part: torch.from_numpy(array) for part, array in packed.items()})
    return stored


def from_stored(tensors: _Tensors, config: NolaConfig) -> _Tensors:
    """Return a file's tensors as parameters, without the adapter's name.

    Raises
    ------
    ValueError
        If packed coefficients are not what the configuration announces.
    """
    counts = {ALPHA: config.num_basis_a, BETA: config.num_basis_b}
    loaded: _Tensors = {}
    for name, values in tensors.items():
        if name.endswith((ALPHA + SCALE, BETA + SCALE)):
            continue
        target = _rename(name, config, to_file=False)
        suffix = next((s for s in counts if name.endswith(s)), None)
        if suffix is None or values.dtype != torch.uint8:
            loaded[target] = values
            continue
        bits = config.coefficient_bits
        if bits is None or len(values) != packed_size(counts[suffix], bits):
            raise ValueError(
                f"`{name}` is quantised otherwise than the adapter here, whose `coefficient_bits` "
                f"is {bits}: load it with its own configuration, under another adapter name."
            )
        if name + SCALE not in tensors:
            raise ValueError(f"`{name}` is quantised and has no scale in the file.")
        scale = tensors[name + SCALE].cpu().numpy().reshape(-1)
        if len(scale) != scale_size(bool(config.exact_first_alpha) and suffix == ALPHA):
            raise ValueError(
                f"`{name}` is quantised otherwise than the adapter here, whose `exact_first_alpha` "
                f"is {config.exact_first_alpha}: load it with its own configuration, under another "
                "adapter name."
            )
        packed = Quantized(values.cpu().numpy(), scale)
        loaded[target] = torch.from_numpy(dequantize(packed, counts[suffix], bits))
    return loaded


def _rename(name: str, config: NolaConfig, *, to_file: bool) -> str:
    """Translate a tensor's name between a model's module names and the file's."""
    prefix = PREFIX if name.startswith(PREFIX) else ""
    local = name.removeprefix(prefix)
    aliases = config.module_aliases or {}
    if not to_file:
        aliases = {old: new for new, old in aliases.items()}
    return prefix + replace_prefix(local, aliases)
