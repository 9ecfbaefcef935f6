"""Export adapters as an exact LoRA in PEFT's format.

A and B are the factors themselves; nothing is decomposed or approximated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters import Adapter
from nola_edge.adapters.belongs import check_no_magnitudes, check_no_stacks, location
from nola_edge.adapters.lora_files import BIAS, EMBEDDING_A, EMBEDDING_B, A, B
from nola_edge.adapters.module_names import Prefix
from nola_edge.adapters.peft_folder import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    adapter_obstacle,
    write_config,
    write_tensors,
)
from nola_edge.adapters.renames import Renames
from nola_edge.adapters.whole_tensors import stored_name
from nola_edge.dtypes import MERGEABLE, numpy_dtype
from nola_edge.errors import ArgumentError
from nola_edge.export.alpha import alpha_of
from nola_edge.export.factors import joined_a, joined_b
from nola_edge.export.lora_fields import fields_of_modules, lora_fields
from nola_edge.export.lora_modules import modules_alone, modules_of_plan, record_of
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.merge.low_rank import total_rank
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from nola_edge.export.lora_modules import Adapters, Modules
    from nola_edge.files.tensors import Tensor

_KEPT = ("base_model_name_or_path", "revision", "task_type", "inference_mode")
#: Holds what no merge can use, such as the head of a public vision transformer's checkpoint.
HEAD_NAME = "head.safetensors"


def export_lora(
    adapter: Any,
    base: str | Path | None,
    output: str | Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
) -> Path:
    """Write a PEFT LoRA folder that merges to the same weights, up to rounding.

    In F32, nola-edge merges it to exactly the same bits.

    Parameters
    ----------
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Of any method. Several become one LoRA, whose ranks are the sums of theirs.
    base : path or str, optional
        The checkpoint, or its Hub id; it gives the sizes of the modules. Not needed for a single
        adapter that records them itself, such as a LoRA or a checkpoint of the public NOLA code.
    output : path
    dtype : {"F32", "F16", "BF16"}
        Type of A and B, in upper or lower case or by torch's name; anything but F32 rounds them.
    force : bool
        Replace an existing output.
    check_base : bool
        Refuse a base with another fingerprint than an adapter records.
    rename
        As for :func:`nola_edge.merge_checkpoint`; the LoRA records the resulting names.

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
    renames = Renames(rename)
    if base is None:
        renames.check_used()  # there is nothing to find
        modules = modules_alone(adapters)
        with _folder(output, inputs, force) as out:
            _write(out, adapters, modules, kind, {})
        return output
    with Checkpoint.open(base_path(base)) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base, renames=renames)
        renames.check_used()
        modules = modules_of_plan(plan)
        with _folder(output, [checkpoint.path, *inputs], force) as out:
            _write(out, adapters, modules, kind, record_of(plan, modules, renames))
            checkpoint.check_unchanged()
    return output


def _folder(output: Path, inputs: list[Path], force: bool) -> AtomicOutput:
    obstacle = adapter_obstacle("LORA")
    return AtomicOutput(output, inputs=inputs, force=force, directory=True, replaces=obstacle)


def _write(
    out: AtomicOutput,
    adapters: Adapters,
    modules: Modules,
    dtype: np.dtype[Any],
    record: Mapping[str, Any],
) -> None:
    fields = {**_config(adapters, modules), **record}
    tensors = {**_factor_tensors(modules, dtype), **_other_tensors(adapters, modules)}
    unplaced = {name: t for adapter, _ in adapters for name, t in adapter.unplaced.items()}
    with out.file(WEIGHTS_NAME) as weights:
        write_tensors(weights, tensors)
    with out.file(CONFIG_NAME) as config:
        write_config(config, fields)
    if unplaced:
        with out.file(HEAD_NAME) as head:
            write_tensors(head, unplaced)


def _check_sayable(adapters: Adapters) -> None:
    """Refuse what one LoRA folder has no words for.

    Raises
    ------
    ArgumentError
    """
    loaded = [adapter for adapter, _ in adapters]
    for adapter in loaded:
        check_no_stacks(adapter, "PEFT loads none by matrices: merge it")
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


def _factor_tensors(modules: Modules, dtype: np.dtype[Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, terms in modules.items():
        features = terms[0].target.features
        is_embedding = terms[0].adapter.is_embedding(terms[0].module)
        a, b = (EMBEDDING_A, EMBEDDING_B) if is_embedding else (A, B)
        tensors[PREFIX + name + a] = joined_a(terms, features[1], dtype)
        tensors[PREFIX + name + b] = joined_b(terms, features[0], dtype)
    return tensors


def _other_tensors(adapters: Adapters, modules: Modules) -> dict[str, Tensor]:
    """Return whole tensors, and what is added to biases, under their names in the output."""
    tensors: dict[str, Tensor] = {}
    for adapter, _ in adapters:
        own = {
            term.module: name
            for name, terms in modules.items()
            for term in terms
            if term.adapter is adapter
        }
        first = next(iter(own))
        renamed = Prefix.of(first, own[first])
        for name, tensor in adapter.whole_tensors.tensors.items():
            tensors[PREFIX + stored_name(renamed.apply(name), modules)] = tensor
        for module, values in adapter.added_biases.items():
            tensors[PREFIX + own[module] + BIAS] = values
    return tensors


def _config(adapters: Adapters, modules: Modules) -> dict[str, Any]:
    (first, weight), *others = adapters
    if isinstance(first, Adapter) and not others and weight == 1:
        return lora_config(first)
    kept = {name: first.bookkeeping[name] for name in _KEPT if name in first.bookkeeping}
    shares = {
        name: (total_rank(terms), terms[0].scaling if len(terms) == 1 else 1.0)
        for name, terms in modules.items()
    }
    loaded = [adapter for adapter, _ in adapters]
    saved = dict.fromkeys(module for adapter in loaded for module in adapter.modules_to_save)
    biases = [
        name for adapter in loaded for name in adapter.whole_tensors if not adapter.may_add(name)
    ]
    fields = fields_of_modules(
        shares,
        fan_in_fan_out=first.fan_in_fan_out,
        bias="all" if biases else "none",
        modules_to_save=tuple(saved),
    )
    return {**kept, **fields, **({"lora_bias": True} if first.added_biases else {})}


def lora_config(adapter: Adapter) -> dict[str, Any]:
    """Return the ``adapter_config.json`` of an adapter's exact LoRA."""
    config = adapter.config
    kept = {name: config.bookkeeping[name] for name in _KEPT if name in config.bookkeeping}
    is_quotient = not config.use_rslora and config.beta_unit == 1
    fields = lora_fields(
        r=config.r,
        lora_alpha=config.lora_alpha if is_quotient else alpha_of(config.scaling, config.r),
        target_modules=adapter.modules,
        fan_in_fan_out=config.fan_in_fan_out,
        bias="lora_only" if config.bias == "nola_only" else config.bias,
        modules_to_save=config.modules_to_save,
    )
    return {**kept, **fields}
