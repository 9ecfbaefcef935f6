"""Adapters of the LLaMA code, which has a PEFT of 2023 with NOLA inside its LoRA.

``llama/peft/tuners/lora.py`` and ``llama/qlora.py``: a PEFT folder whose ``adapter_config.json``
says ``peft_type: LORA``, ``use_nola``, ``nola_num_basis``, ``r`` and ``lora_alpha``; its tensors
are those of :mod:`~nola_edge.adapters.public_nola.seeded`, named
``base_model.model.<module>.lora_A.seed`` and so on, in ``adapter_model.bin``, which
:mod:`~nola_edge.files.torch_file` refuses, and says what to do. ``lora_B.weight`` is zero at first
and stays so. With ``--bf16`` the layers are bfloat16, and so are the basis and every step of the
matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.peft_fields import BOOKKEEPING, is_alpha, is_off
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX
from nola_edge.adapters.public_nola.contents import Contents, Layer, factors_of
from nola_edge.adapters.public_nola.recognise import LLAMA
from nola_edge.adapters.public_nola.seeded import (
    check_counts,
    given_alpha,
    read_pair,
    sort_names,
)
from nola_edge.errors import AdapterError, ArgumentError, printable

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile
    from nola_edge.adapters.public_nola.seeded import Names

#: Fields that are read here, or say how the adapter was trained or found.
_UNDERSTOOD = BOOKKEEPING | {
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "nola_num_basis",
    "r",
    "use_nola",
}


def read_llama(file: CheckpointFile, lora_alpha: float | None) -> Contents:
    """Read an adapter of the LLaMA code.

    Parameters
    ----------
    file : CheckpointFile
    lora_alpha : float, optional
        Where no configuration says it.

    Raises
    ------
    NolaEdgeError
    """
    fields = file.fields
    modules, others = sort_names(file)
    if others:
        raise file.refusal(others[0], "is not part of a NOLA layer, so its effect is unknown")
    _check_fields(file)
    layers = _layers(file, modules, _lora_alpha(file, lora_alpha))
    check_counts(file, factors_of(layers), fields.get("nola_num_basis"))
    return Contents(
        LLAMA,
        layers,
        fan_in_fan_out=fields.get("fan_in_fan_out", False) is True,
        bookkeeping={name: fields[name] for name in BOOKKEEPING & fields.keys()},
    )


def _layers(file: CheckpointFile, modules: Names, alpha: float) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for module, names in modules.items():
        a, b = read_pair(file, names)
        rank = file.fields.get("r", a.shape[0])
        if rank != a.shape[0]:
            raise file.refusal(
                names["A"]["weight"],
                f"has rank {a.shape[0]}, the configuration says {printable(rank)}",
            )
        name = module.removeprefix("module.").removeprefix(PREFIX)
        if name in layers:
            raise file.refusal(name, "occurs twice, with and without a prefix")
        layers[name] = Layer.of_pair(a, b, alpha / a.shape[0])
    return layers


def _check_fields(file: CheckpointFile) -> None:
    for name, value in file.fields.items():
        if name not in _UNDERSTOOD and not (is_off(value) or value in (0, "none")):
            raise _refusal(file, name, f"is {printable(value)}, which is not understood")
    for name, wanted in (("peft_type", "LORA"), ("use_nola", True)):
        found = file.fields.get(name)
        if file.fields and found != wanted:
            raise _refusal(file, name, f"is {printable(found)}, the public code writes {wanted}")


def _lora_alpha(file: CheckpointFile, given: float | None) -> float:
    stored = file.fields.get("lora_alpha")
    if stored is None:
        return given_alpha(file, given)
    if not is_alpha(stored):
        raise _refusal(file, "lora_alpha", f"is {printable(stored)}, must be a number")
    if given is not None and given != stored:
        raise ArgumentError(f"is {given}, the configuration says {stored}", field="lora_alpha")
    return float(stored)


def _refusal(file: CheckpointFile, field: str, message: Any) -> AdapterError:
    return AdapterError(message, file=file.path.parent / CONFIG_NAME, field=field)
