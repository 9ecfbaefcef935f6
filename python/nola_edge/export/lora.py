"""Export an adapter as an exact LoRA in PEFT's format.

A and B are the expanded factors themselves; nothing is decomposed or approximated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapter import Adapter
from nola_edge.adapter.files import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    stored_name,
    write_config,
    write_tensors,
)
from nola_edge.checkpoint import Checkpoint
from nola_edge.dtypes import MERGEABLE, numpy_dtype
from nola_edge.export.alpha import alpha_of
from nola_edge.export.factors import factor_tensor
from nola_edge.hub import base_path
from nola_edge.merge.plan import plan_merge
from nola_edge.merge.update import stored_features
from nola_edge.output import AtomicOutput
from nola_edge.replaceable import lora_folder
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nola_edge.tensors import Tensor

_KEPT = ("base_model_name_or_path", "revision", "task_type", "inference_mode")


def export_lora(
    adapter: str | Path | Adapter,
    base: str | Path,
    output: str | Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    check_base: bool = True,
) -> Path:
    """Write a PEFT LoRA folder that merges to the same weights, to rounding.

    Parameters
    ----------
    adapter : Adapter or path
    base : path or str
        The checkpoint, or its Hub id; it says how large the modules are.
    output : path
    dtype : {"F32", "F16", "BF16"}
        Of A and B, in any case or by torch's name; anything but F32 rounds them.
    force : bool
        Replace an existing output.
    check_base : bool
        Refuse a base with another fingerprint than the adapter records.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    NolaEdgeError
    """
    kind = numpy_dtype(check_type(dtype, MERGEABLE))
    output = arguments.path("output", output)
    arguments.path("base", base)
    if not isinstance(adapter, Adapter):
        arguments.path("adapter", adapter)
    loaded = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    with Checkpoint.open(base_path(base)) as checkpoint:
        plan = plan_merge(checkpoint, ((loaded, 1.0),), check_base=check_base)
        tensors: dict[str, Tensor] = {}
        for name, terms in plan.merges.items():
            shape = plan.tensor(name)[1].shape
            out_features, in_features = stored_features(shape, loaded.config.fan_in_fan_out)
            module = terms[0].module
            a = factor_tensor(loaded, module, "A", in_features, kind)
            b = factor_tensor(loaded, module, "B", out_features, kind)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        for name, tensor in loaded.whole_tensors.tensors.items():
            tensors[PREFIX + stored_name(name, loaded.modules)] = tensor
        inputs = [checkpoint.path, *([loaded.path] if loaded.path is not None else [])]
        with AtomicOutput(
            output, inputs=inputs, force=force, directory=True, replaces=lora_folder
        ) as out:
            with out.file(WEIGHTS_NAME) as weights:
                write_tensors(weights, tensors)
            with out.file(CONFIG_NAME) as config:
                write_config(config, lora_config(loaded))
            checkpoint.check_unchanged()
    return output


def lora_config(adapter: Adapter) -> dict[str, Any]:
    """Return the ``adapter_config.json`` of an adapter's exact LoRA."""
    config = adapter.config
    kept = {name: config.bookkeeping[name] for name in _KEPT if name in config.bookkeeping}
    fields = lora_fields(
        r=config.r,
        lora_alpha=(alpha_of(config.scaling, config.r) if config.use_rslora else config.lora_alpha),
        target_modules=adapter.modules,
        fan_in_fan_out=config.fan_in_fan_out,
        bias="lora_only" if config.bias == "nola_only" else config.bias,
        modules_to_save=config.modules_to_save,
    )
    return {**kept, **fields}


def lora_fields(
    *,
    r: int,
    lora_alpha: float,
    target_modules: Iterable[str],
    fan_in_fan_out: bool = False,
    bias: str = "none",
    modules_to_save: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of PEFT's LoRA configuration that matter to its weights.

    The scaling is always lora_alpha / r (:mod:`nola_edge.export.alpha`).
    """
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha,
        "use_rslora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "lora_dropout": 0.0,
        "bias": bias,
        "target_modules": sorted(target_modules),
        "modules_to_save": list(modules_to_save) or None,
    }
