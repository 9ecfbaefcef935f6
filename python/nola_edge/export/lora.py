"""Export adapters as an exact LoRA in PEFT's format.

A and B are the factors themselves; nothing is decomposed or approximated.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from nola_edge.merge.low_rank import Term
from nola_edge.merge.plan import Prefix, load_adapters, plan_merge
from nola_edge.merge.target import Target
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    import numpy as np

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.plan import MergePlan

    Adapters = tuple[tuple[LowRankAdapter, float], ...]

_KEPT = ("base_model_name_or_path", "revision", "task_type", "inference_mode")
_WEIGHT = ".weight"
#: Holds what no merge can use, such as the head of a public vision transformer's checkpoint.
HEAD_NAME = "head.safetensors"


@dataclass(frozen=True)
class _Layers:
    """What becomes a pair of factors each.

    Attributes
    ----------
    adapters : tuple of (LowRankAdapter, float)
    terms : dict
        Name of the weight -> the terms that are joined.
    names : dict
        Name of the weight -> module name in the output.
    """

    adapters: Adapters
    terms: dict[str, tuple[Term, ...]]
    names: dict[str, str]

    @classmethod
    def of_plan(cls, plan: MergePlan) -> _Layers:
        """Return those of adapters whose base is at hand."""
        return cls(plan.adapters, plan.merges, _module_names(plan))

    @classmethod
    def alone(cls, adapters: Adapters) -> _Layers:
        """Return those of one adapter that says itself how large its modules are.

        Raises
        ------
        ArgumentError
        """
        (adapter, weight), *others = adapters
        if others:
            raise ArgumentError("is needed where adapters are joined (--base)", field="base")
        terms: dict[str, tuple[Term, ...]] = {}
        for module in adapter.modules:
            shape = adapter.shape(module)
            if shape is None:
                raise ArgumentError(
                    "is needed (--base), as the adapter's files do not say how large its modules "
                    "are",
                    field="base",
                )
            transposed = adapter.transposed(module)
            stored = shape[::-1] if transposed else shape
            target = Target.whole(module + _WEIGHT, stored, transposed)
            terms[target.tensor] = (Term(adapter, module, weight, target),)
        return cls(adapters, terms, {name: name.removesuffix(_WEIGHT) for name in terms})


def export_lora(
    adapter: Any,
    base: str | Path | None,
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
    base : path or str, optional
        The checkpoint, or its Hub id; it says how large the modules are. None will do for one
        adapter that says it itself, such as a LoRA or a checkpoint of the public NOLA code.
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
    if base is not None:
        arguments.path("base", base)
    adapters = load_adapters(adapter)
    _check_sayable(adapters)
    inputs = [Path(a.path) for a, _ in adapters if a.path is not None]
    if base is None:
        _write(_Layers.alone(adapters), kind, output, inputs, force)
        return output
    with Checkpoint.open(base_path(base)) as checkpoint:
        layers = _Layers.of_plan(plan_merge(checkpoint, adapters, check_base=check_base))
        _write(layers, kind, output, [checkpoint.path, *inputs], force, checkpoint)
    return output


def _write(
    layers: _Layers,
    dtype: np.dtype[Any],
    output: Path,
    inputs: list[Path],
    force: bool,
    base: Checkpoint | None = None,
) -> None:
    tensors = {**_factor_tensors(layers, dtype), **_other_tensors(layers)}
    unplaced = {name: t for adapter, _ in layers.adapters for name, t in adapter.unplaced.items()}
    with AtomicOutput(
        output,
        inputs=inputs,
        force=force,
        directory=True,
        expected_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        replaces=adapter_obstacle("LORA"),
    ) as out:
        with out.file(WEIGHTS_NAME) as weights:
            write_tensors(weights, tensors)
        with out.file(CONFIG_NAME) as config:
            write_config(config, _config(layers))
        if unplaced:
            with out.file(HEAD_NAME) as head:
                write_tensors(head, unplaced)
        if base is not None:
            base.check_unchanged()


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


def _factor_tensors(layers: _Layers, dtype: np.dtype[Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, terms in layers.terms.items():
        outputs, inputs = terms[0].target.features
        a, b = (EMBEDDING_A, EMBEDDING_B) if _is_embedding(terms[0]) else (A, B)
        tensors[PREFIX + layers.names[name] + a] = joined_a(terms, inputs, dtype)
        tensors[PREFIX + layers.names[name] + b] = joined_b(terms, outputs, dtype)
    return tensors


def _is_embedding(term: Term) -> bool:
    return term.adapter.is_embedding(term.module)


def _other_tensors(layers: _Layers) -> dict[str, Tensor]:
    """Return whole tensors, and what is added to biases, under their names in the output."""
    tensors: dict[str, Tensor] = {}
    names, modules = layers.names, set(layers.names.values())
    for adapter, _ in layers.adapters:
        own = {
            term.module: name
            for name, terms in layers.terms.items()
            for term in terms
            if term.adapter is adapter
        }
        renamed = Prefix.of({module: names[name] + _WEIGHT for module, name in own.items()})
        for name, tensor in adapter.whole_tensors.tensors.items():
            tensors[PREFIX + stored_name(renamed.apply(name), modules)] = tensor
        for module, values in adapter.added_biases.items():
            tensors[PREFIX + names[own[module]] + BIAS] = values
    return tensors


def _config(layers: _Layers) -> dict[str, Any]:
    (first, weight), *others = layers.adapters
    if isinstance(first, Adapter) and not others and weight == 1:
        return lora_config(first)
    kept = {name: first.bookkeeping[name] for name in _KEPT if name in first.bookkeeping}
    modules = {
        layers.names[name]: (
            sum(term.rank for term in terms),
            terms[0].scaling if len(terms) == 1 else 1.0,
        )
        for name, terms in layers.terms.items()
    }
    loaded = [adapter for adapter, _ in layers.adapters]
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
    return {**kept, **fields, **({"lora_bias": True} if first.added_biases else {})}


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
