"""Export adapters as an exact LoRA in PEFT's format.

A and B are the factors themselves; nothing is decomposed or approximated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters import Adapter
from nola_edge.adapters.belongs import check_no_magnitudes, location
from nola_edge.adapters.lora_files import BIAS, EMBEDDING_A, EMBEDDING_B, A, B
from nola_edge.adapters.peft_folder import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    adapter_obstacle,
    write_config,
    write_tensors,
)
from nola_edge.adapters.whole_tensors import stored_name
from nola_edge.dtypes import MERGEABLE, numpy_dtype
from nola_edge.errors import ArgumentError
from nola_edge.export.alpha import alpha_of
from nola_edge.export.factors import joined_a, joined_b
from nola_edge.export.lora_fields import fields_of_modules, lora_fields
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.merge.plan import Prefix, load_adapters, plan_merge
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    import numpy as np

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.low_rank import Term
    from nola_edge.merge.plan import MergePlan

    Adapters = tuple[tuple[LowRankAdapter, float], ...]

_KEPT = ("base_model_name_or_path", "revision", "task_type", "inference_mode")
_WEIGHT = ".weight"


def export_lora(
    adapter: Any,
    base: str | Path,
    output: str | Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    check_base: bool = True,
) -> Path:
    """Write a PEFT LoRA folder that merges to the same weights, to rounding.

    In F32 nola-edge merges it to the very same bits.

    Parameters
    ----------
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Of any method. Several become one LoRA, whose ranks are the sums of theirs.
    base : path or str
        The checkpoint, or its Hub id; it says how large the modules are.
    output : path
    dtype : {"F32", "F16", "BF16"}
        Of A and B, in any case or by torch's name; anything but F32 rounds them.
    force : bool
        Replace an existing output.
    check_base : bool
        Refuse a base with another fingerprint than an adapter records.

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
    adapters = load_adapters(adapter)
    _check_sayable(adapters)
    with Checkpoint.open(base_path(base)) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        names = _module_names(plan)
        tensors = _factor_tensors(plan, names, kind)
        tensors.update(_other_tensors(plan, names))
        inputs = [checkpoint.path, *(Path(a.path) for a, _ in adapters if a.path is not None)]
        with AtomicOutput(
            output, inputs=inputs, force=force, directory=True, replaces=adapter_obstacle("LORA")
        ) as out:
            with out.file(WEIGHTS_NAME) as weights:
                write_tensors(weights, tensors)
            with out.file(CONFIG_NAME) as config:
                write_config(config, _config(plan, names))
            checkpoint.check_unchanged()
    return output


def _check_sayable(adapters: Adapters) -> None:
    """Refuse what one LoRA folder has no words for.

    Raises
    ------
    ArgumentError
    """
    loaded = [adapter for adapter, _ in adapters]
    for adapter in loaded:
        check_no_magnitudes(adapter, "a LoRA does not: give the adapter's own folder, or merge")
    if len({adapter.fan_in_fan_out for adapter in loaded}) > 1:
        raise ArgumentError("adapters disagree about fan_in_fan_out", field="adapter")
    changed = [adapter for adapter in loaded if adapter.added_biases]
    if changed and len(loaded) > 1:
        raise ArgumentError(
            "adds to biases (lora_bias), and one LoRA made of several cannot; export it alone, or "
            "merge",
            file=location(changed[0]),
            field="adapter",
        )


def _module_names(plan: MergePlan) -> dict[str, str]:
    """Return tensor name -> module name in the output.

    The adapters' own, if all differ from the base's in the same way; else the base's.
    """
    terms = [(name, term) for name, found in plan.merges.items() for term in found]
    if len({Prefix.of({term.module: name}) for name, term in terms}) == 1:
        return {name: term.module for name, term in terms}
    return {name: name.removesuffix(_WEIGHT) for name in plan.merges}


def _factor_tensors(
    plan: MergePlan, names: dict[str, str], dtype: np.dtype[Any]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, terms in plan.merges.items():
        features = terms[0].target.features
        is_embedding = _is_embedding(terms[0])
        a, b = (EMBEDDING_A, EMBEDDING_B) if is_embedding else (A, B)
        tensors[PREFIX + names[name] + a] = joined_a(terms, features[1], dtype)
        tensors[PREFIX + names[name] + b] = joined_b(terms, features[0], dtype)
    return tensors


def _is_embedding(term: Term) -> bool:
    return term.adapter.is_embedding(term.module)


def _other_tensors(plan: MergePlan, names: dict[str, str]) -> dict[str, Tensor]:
    """Return whole tensors, and what is added to biases, under their names in the output."""
    tensors: dict[str, Tensor] = {}
    modules = set(names.values())
    for adapter, _ in plan.adapters:
        own = {
            term.module: name
            for name, terms in plan.merges.items()
            for term in terms
            if term.adapter is adapter
        }
        renamed = Prefix.of({module: names[name] + _WEIGHT for module, name in own.items()})
        for name, tensor in adapter.whole_tensors.tensors.items():
            tensors[PREFIX + stored_name(renamed.apply(name), modules)] = tensor
        for module, values in adapter.added_biases.items():
            tensors[PREFIX + names[own[module]] + BIAS] = values
    return tensors


def _config(plan: MergePlan, names: dict[str, str]) -> dict[str, Any]:
    (first, weight), *others = plan.adapters
    if isinstance(first, Adapter) and not others and weight == 1:
        return lora_config(first)
    kept = {name: first.bookkeeping[name] for name in _KEPT if name in first.bookkeeping}
    modules = {
        names[name]: (
            sum(term.rank for term in terms),
            terms[0].scaling if len(terms) == 1 else 1.0,
        )
        for name, terms in plan.merges.items()
    }
    loaded = [adapter for adapter, _ in plan.adapters]
    saved = dict.fromkeys(module for adapter in loaded for module in adapter.modules_to_save)
    biases = [
        name for adapter in loaded for name in adapter.whole_tensors if not adapter.may_add(name)
    ]
    fields = fields_of_modules(
        modules,
        fan_in_fan_out=first.fan_in_fan_out,
        bias="all" if biases else "none",
        modules_to_save=tuple(saved),
    )
    return {**kept, **fields, "lora_bias": bool(first.added_biases)}


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
