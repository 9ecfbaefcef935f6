"""Tensors that adapters bring whole, and biases that they add to, each placed in a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.belongs import location
from nola_edge.adapters.stored_names import namesake
from nola_edge.adapters.whole_tensors import EMBEDDINGS
from nola_edge.dtypes import MERGEABLE, numpy_dtype
from nola_edge.errors import AdapterError, MismatchError, NotFiniteError, printable
from nola_edge.files.tensors import CastTensor
from nola_edge.merge.bias import AddedBias, add_bias
from nola_edge.merge.heads import is_head

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.adapters.module_names import Matches
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.plan import MergePlan


def plan_whole_tensors(plan: MergePlan, adapter: LowRankAdapter, matches: Matches) -> None:
    """Plan the tensors that take the base's place.

    Raises
    ------
    NolaEdgeError
        If the base has no such tensor, or another adapter changes it.
    """
    for name, tensor in adapter.whole_tensors.tensors.items():
        stored = _whole(plan, adapter, name, matches.whole[name])
        if stored not in plan.base.tensors:
            _check_new(plan, adapter, name, matches)
        _place_whole_tensor(plan, adapter, stored, tensor)


def _check_new(plan: MergePlan, adapter: LowRankAdapter, name: str, matches: Matches) -> None:
    """Refuse a whole tensor that the base lacks, or has below another prefix."""
    where: dict[str, Any] = {"file": plan.base.path, "field": matches.whole[name].tensor}
    who, tensors = printable(str(location(adapter))), plan.base.tensors
    other = namesake(matches.whole[name].tensor, tensors)
    if other is not None and not matches.names.keeps(name):
        from nola_edge.adapters.suggested import rename_options, suggested_renames

        whole = adapter.whole_tensors.tensors
        rules = suggested_renames(adapter.modules, whole, tensors, matches.names)
        kept = f"; if not, {rename_options({name: name})} keeps its name"
        raise MismatchError(
            f"would be added from {who} beside {printable(other)!r}, which seems to be the same "
            f"tensor; if it is, give {rename_options(rules) or '--rename NEW=OLD'} (rename= in "
            f"Python){kept if adapter.may_add(name) else ''}",
            **where,
        )
    if not adapter.may_add(name):
        raise MismatchError(f"has no such bias, but {who} trained one", **where)


def plan_biases(plan: MergePlan, adapter: LowRankAdapter, weight: float, matches: Matches) -> None:
    """Plan what is added to biases; see :func:`add_bias`."""
    for module, values in adapter.added_biases.items():
        bias = _whole(plan, adapter, module, matches.parts[module].bias)
        add_bias(plan, adapter, bias, AddedBias(values, weight * adapter.scaling_of(module)))


def _whole(plan: MergePlan, adapter: LowRankAdapter, name: str, part: TensorPart) -> str:
    if part.lines is not None:
        raise MismatchError(
            f"holds several modules, and {printable(str(location(adapter)))} has "
            f"{printable(name)!r}, a part of it, as a whole: only weights are merged in parts; "
            "merge into a model in memory (PEFT's merge_and_unload) and save that",
            file=plan.base.path,
            field=part.tensor,
        )
    return part.tensor


def _resized(name: str, shape: tuple[int, ...], stored: tuple[int, ...]) -> str:
    """Say what to do about a tensor that got more or fewer rows for training."""
    if shape[1:] != stored[1:] or not shape:
        return ""
    if name.endswith(EMBEDDINGS):
        return (
            ": the vocabulary was resized for training; resize the base's too "
            f"(model.resize_token_embeddings({shape[0]}), then save_pretrained) and merge into that"
        )
    if is_head(name):
        return (
            ": the head was made for other labels; save the base with such a head (from_pretrained("
            f"…, num_labels={shape[0]}, ignore_mismatched_sizes=True), then save_pretrained) and "
            "merge into that"
        )
    return ""


def _place_whole_tensor(
    plan: MergePlan, adapter: LowRankAdapter, name: str, tensor: Tensor
) -> None:
    where: dict[str, Any] = {"file": location(adapter), "field": name}
    if name in plan.merges or name in plan.replaced or name in plan.added:
        raise AdapterError("the whole tensor is already changed by an adapter here", **where)
    if name in plan.base.tensors:
        info = plan.tensor(name)[1]
        plan.replaced[name] = fitted(tensor, name, info.shape, info.dtype, location(adapter))
    elif not tensor.is_finite():
        raise NotFiniteError("holds an infinite or NaN value", **where)
    else:
        plan.added[name] = tensor


def fitted(tensor: Tensor, name: str, shape: tuple[int, ...], dtype: str, adapter: Path) -> Tensor:
    """Return a whole tensor of an adapter, in the dtype of the one whose place it takes.

    Parameters
    ----------
    tensor : Tensor
    name : str
        In the base.
    shape, dtype
        Of what the base has under that name.
    adapter : Path
        Named in errors.

    Raises
    ------
    NotFiniteError
        If an element is infinite or NaN.
    MismatchError
        If the shape is another, or the dtype none that is merged, or too small for the values.
    """
    where: dict[str, Any] = {"file": adapter, "field": name}
    if not tensor.is_finite():
        raise NotFiniteError("holds an infinite or NaN value", **where)
    if tuple(tensor.shape) != tuple(shape):
        raise MismatchError(
            f"has shape {list(tensor.shape)}, the base's tensor {list(shape)}"
            f"{_resized(name, tensor.shape, shape)}",
            **where,
        )
    if dtype not in MERGEABLE:
        raise MismatchError(f"the base's tensor has dtype {dtype}", **where)
    if tensor.dtype == numpy_dtype(dtype):
        return tensor
    cast = CastTensor(tensor, numpy_dtype(dtype))
    if not cast.is_finite():
        raise MismatchError(f"is not finite in the base's dtype {dtype}", **where)
    return cast
