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

import math
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX
from nola_edge.adapters.public_nola.contents import Layer, Part, Plan
from nola_edge.adapters.public_nola.seeded import check_counts, read_pair, sort_names
from nola_edge.errors import AdapterError, ArgumentError, printable

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import Source

_KEPT = ("base_model_name_or_path", "revision", "task_type", "inference_mode")
#: Fields that say how it was trained, or are read here.
_UNDERSTOOD = {
    *_KEPT,
    "auto_mapping",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "nola_num_basis",
    "peft_type",
    "r",
    "target_modules",
    "use_nola",
}
_OFF: tuple[Any, ...] = (None, False, 0, "none", "", [], {})


def plan_peft(source: Source, lora_alpha: float | None) -> Plan:
    """Plan the conversion of an adapter of the LLaMA code.

    Parameters
    ----------
    source : Source
    lora_alpha : float, optional
        Where no configuration says it.

    Raises
    ------
    NolaEdgeError
    """
    modules, others = sort_names(source.tensors, source)
    if others:
        raise AdapterError(
            "is not part of a NOLA layer, so what it does is not known",
            file=source.path,
            field=others[0],
        )
    config = source.config or {}
    _check_config(config, source)
    alpha = _lora_alpha(config, lora_alpha, source)
    layers = []
    for module, names in modules.items():
        a, b = read_pair(source, names)
        if config.get("r", a.shape[0]) != a.shape[0]:
            raise AdapterError(
                f"has rank {a.shape[0]}, the configuration says {printable(config['r'])}",
                file=source.path,
                field=names["A"]["weight"],
            )
        local = module.removeprefix("module.").removeprefix(PREFIX)
        layers.append(Layer(local, b.shape[0], (Part(a, b),), alpha))
    plan = Plan(
        "LLaMA (PEFT)",
        tuple(layers),
        fan_in_fan_out=config.get("fan_in_fan_out", False) is True,
        kept={name: config[name] for name in _KEPT if name in config},
    )
    check_counts(source, plan.factors, config.get("nola_num_basis"))
    return plan


def _check_config(config: dict[str, Any], source: Source) -> None:
    for name, value in config.items():
        if name not in _UNDERSTOOD and not any(value is off or value == off for off in _OFF):
            raise AdapterError(
                f"is {printable(value)}, which is not understood",
                file=source.path.parent / CONFIG_NAME,
                field=name,
            )
    for name, wanted in (("peft_type", "LORA"), ("use_nola", True)):
        if config and config.get(name) != wanted:
            raise AdapterError(
                f"is {printable(config.get(name))}, the public code writes {wanted}",
                file=source.path.parent / CONFIG_NAME,
                field=name,
            )


def _lora_alpha(config: dict[str, Any], given: float | None, source: Source) -> float:
    stored = config.get("lora_alpha")
    if stored is None:
        return require_alpha(given, source)
    if isinstance(stored, bool) or not isinstance(stored, int | float) or not math.isfinite(stored):
        raise AdapterError(
            f"is {printable(stored)}, must be a number",
            file=source.path.parent / CONFIG_NAME,
            field="lora_alpha",
        )
    if given is not None and given != stored:
        raise ArgumentError(f"is {given}, the configuration says {stored}", field="lora_alpha")
    return float(stored)


def require_alpha(given: float | None, source: Source) -> float:
    """Return the scale that no file says, or refuse.

    Raises
    ------
    ArgumentError
    """
    if given is None:
        raise ArgumentError(
            f"{printable(source.path, 240)} does not say it; give what training was given as "
            "--lora_alpha (here --lora-alpha), or the PEFT folder, whose configuration says it",
            field="lora_alpha",
        )
    if isinstance(given, bool) or not math.isfinite(given) or given <= 0:
        raise ArgumentError(f"is {given}, must be positive", field="lora_alpha")
    return float(given)
