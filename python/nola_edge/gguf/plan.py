"""Check adapters against a GGUF file completely, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.belongs import (
    check_biases,
    check_factor_sizes,
    check_no_stacks,
    check_shapes,
    location,
)
from nola_edge.adapters.fingerprints import base_fingerprint
from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, printable
from nola_edge.files.gguf_types import FLOAT_TYPES, TENSOR_TYPES
from nola_edge.gguf.model import model_of_gguf
from nola_edge.gguf.quantization import NEAREST, ROUNDINGS, WRITABLE_TYPES, check_codecs
from nola_edge.gguf.requantize import Requantized
from nola_edge.merge.dora import check_alone
from nola_edge.merge.low_rank import Term
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import Stored
from nola_edge.merge.target import Target
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.gguf import GgufFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.gguf.architectures import Model, Place

_OUTPUT = "output.weight"


@dataclass
class TensorMerge:
    """What is merged into one tensor.

    Attributes
    ----------
    kind : str
        Type of the merged tensor.
    terms : tuple of Term
    """

    kind: str
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True)
class GgufPlan:
    """What a merge will do.

    Attributes
    ----------
    base : GgufFile
    adapters : tuple of (LowRankAdapter, float)
        With the weight of each.
    merges : dict
        Tensor name -> :class:`TensorMerge`.
    rounding : str
        Of :data:`ROUNDINGS`; how quantised types are written.
    """

    base: GgufFile
    adapters: tuple[tuple[LowRankAdapter, float], ...]
    merges: dict[str, TensorMerge] = field(default_factory=dict)
    rounding: str = NEAREST

    @property
    def names(self) -> list[str]:
        """Return the names of the result's tensors, in order."""
        return list(self.base.tensors)

    @property
    def merged(self) -> list[str]:
        """Return the names of the tensors that adapters are merged into."""
        return list(self.merges)

    @property
    def kinds(self) -> dict[str, str]:
        """Return tensor name -> type, of those that adapters are merged into."""
        return {name: merge.kind for name, merge in self.merges.items()}

    def result(self, name: str) -> Stored | Merged:
        """Return what a tensor of the result is made of.

        Raises
        ------
        KeyError
            If the result has no such tensor.
        """
        info, merge = self.base.tensors[name], self.merges.get(name)
        if merge is None:
            return Stored(self.base, info)
        if merge.kind == info.dtype and merge.kind in FLOAT_TYPES:
            return Merged(self.base, info, merge.terms)
        return Requantized(self.base, info, merge.terms, merge.kind, self.rounding)


def plan_gguf(
    base: GgufFile,
    adapters: tuple[tuple[LowRankAdapter, float], ...],
    *,
    outtype: str | None = None,
    rounding: str = NEAREST,
) -> GgufPlan:
    """Check every adapter against a GGUF file and say what is merged into which tensor.

    Parameters
    ----------
    base : GgufFile
    adapters : tuple of (LowRankAdapter, float)
    outtype : str, optional
        Type of merged tensors; default: the base's own.
    rounding : str
        Of :data:`ROUNDINGS`.

    Raises
    ------
    MismatchError
        If the architecture is not known, a module is absent or has another shape, or a tensor's
        type cannot be written.
    AdapterError
        If an adapter brings whole tensors.
    ArgumentError
        If `outtype` cannot be written, `rounding` is not known or nothing is quantised by it, or
        the ``gguf`` package is needed but missing.
    """
    if outtype is not None:
        outtype = check_type(outtype, WRITABLE_TYPES, "outtype")
    check_rounding(rounding)
    model = model_of_gguf(base)
    plan = GgufPlan(base, adapters, rounding=rounding)
    for adapter, weight in adapters:
        check_no_whole_tensors(adapter)
        check_no_stacks(adapter, "merge it into the checkpoint, and convert that")
        for module, target in matched_tensors(base, model, adapter).items():
            info = base.tensors[target.tensor]
            kind = _written_type(base, info, outtype)
            merge = plan.merges.setdefault(target.tensor, TensorMerge(kind))
            merge.terms += (Term(adapter, module, weight, target),)
    for name, merge in plan.merges.items():
        check_alone(merge.terms, name)
    kinds = {base.tensors[name].dtype: name for name in plan.merges}
    check_codecs({**kinds, **{merge.kind: name for name, merge in plan.merges.items()}}, base.path)
    if rounding != NEAREST and all(m.kind in FLOAT_TYPES for m in plan.merges.values()):
        raise ArgumentError(
            f"is {rounding!r}, but no merged tensor is quantised, and floats have one rounding: "
            "leave it out",
            file=base.path,
            field="rounding",
        )
    return plan


def base_fingerprint_of(plan: GgufPlan) -> str:
    """Return the fingerprint of what adapters are merged into."""
    return base_fingerprint((name, plan.base, plan.base.tensors[name]) for name in plan.merges)


def check_rounding(rounding: object) -> None:
    """Refuse what is no rounding.

    Raises
    ------
    ArgumentError
    """
    if rounding not in ROUNDINGS:
        raise ArgumentError(
            f"is {printable(repr(rounding))}, must be one of {', '.join(ROUNDINGS)}",
            field="rounding",
        )


def check_no_whole_tensors(adapter: LowRankAdapter) -> None:
    """Refuse an adapter that changes more than matrices, for which GGUF has no place here.

    Raises
    ------
    AdapterError
    """
    for found, what in (
        (adapter.whole_tensors, "whole tensors (modules_to_save or bias)"),
        (adapter.added_biases, "changes of biases (lora_bias)"),
    ):
        if found:
            raise AdapterError(
                f"carries {what}, which cannot go into GGUF; merge into the Hugging Face "
                "checkpoint and convert that",
                file=location(adapter),
                field=next(iter(found)),
            )


def check_no_double(adapter: LowRankAdapter, tensors: Mapping[str, str]) -> None:
    """Refuse an adapter two of whose modules would be merged into one tensor.

    Raises
    ------
    AdapterError
    """
    owners: dict[str, str] = {}
    for module, tensor in tensors.items():
        other = owners.setdefault(tensor, module)
        if other != module:
            raise AdapterError(
                f"is the tensor {tensor} in GGUF, and so is {printable(other)}",
                file=location(adapter),
                field=module,
            )


def matched_tensors(base: GgufFile, model: Model, adapter: LowRankAdapter) -> dict[str, Target]:
    """Find the tensor of every module of an adapter, and check its shape.

    Raises
    ------
    MismatchError
        If it is missing, or its shape is not the one that the adapter was made for.
    """
    targets: dict[str, Target] = {}
    for module in adapter.modules:
        place = place_of(model, adapter, module)
        where: dict[str, Any] = {"file": base.path, "field": place.tensor}
        if place.tensor not in base.tensors:
            raise MismatchError(
                f"is missing, but module {printable(module)!r} of "
                f"{printable(str(location(adapter)))} needs it; is this the adapter's base, "
                "converted without fusing layers?",
                **where,
            )
        shape = base.tensors[place.tensor].shape
        if len(shape) != 2 or 0 in shape:
            raise MismatchError(f"has shape {list(shape)}, but a matrix is needed", **where)
        check_factor_sizes(adapter, module, shape, base.path, place.tensor)
        head_rows = place.head_rows(shape[0], base.path)
        # GGUF stores the matrix of every layer as (out, in), GPT-2's too.
        is_embedding = adapter.is_embedding(module)
        targets[module] = Target.whole(place.tensor, shape, is_embedding, head_rows)
        _check_tied(base, adapter, module, place.tensor)
    check_no_double(adapter, {module: target.tensor for module, target in targets.items()})
    check_shapes(adapter, {m: target.features for m, target in targets.items()}, base.path)
    biases = (TensorPart(target.tensor).bias.tensor for target in targets.values())
    check_biases(adapter, biases, base.tensors, base.path)
    return targets


def place_of(model: Model, adapter: LowRankAdapter, module: str) -> Place:
    """Return the tensor that holds the weight of a module.

    Raises
    ------
    MismatchError
        If the architecture has none for it.
    """
    find = model.embedding if adapter.is_embedding(module) else model.place
    return find(module, location(adapter))


def _check_tied(base: GgufFile, adapter: LowRankAdapter, module: str, tensor: str) -> None:
    if adapter.is_embedding(module) and _OUTPUT not in base.tensors:
        raise MismatchError(
            f"is the output layer too, since there is no {_OUTPUT}, and "
            f"{printable(str(location(adapter)))} changes the input alone; convert a base that was "
            "saved with tie_word_embeddings=False",
            file=base.path,
            field=tensor,
        )


def _written_type(base: GgufFile, info: TensorInfo, outtype: str | None) -> str:
    where: dict[str, Any] = {"file": base.path, "field": info.name}
    kind = outtype or info.dtype
    if kind not in WRITABLE_TYPES:
        raise MismatchError(
            f"has type {info.dtype}, which only llama.cpp's own quantiser writes. Leave the base "
            "as it is and load the adapter beside it (nola-edge export gguf-lora), or write "
            "merged tensors as another type: --outtype f16, bf16 or q8_0",
            value=info.dtype,
            **where,
        )
    if info.shape[1] % TENSOR_TYPES[kind].block:
        raise MismatchError(
            f"rows of {info.shape[1]} elements are not whole blocks of {kind}; choose --outtype "
            "f16 or bf16",
            **where,
        )
    return kind
