"""Merge adapters into the weights of a whole model: all of them, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.adapters.renames import Renames
from nola_edge.errors import NotFiniteError
from nola_edge.merge.plan import load_adapters
from nola_edge.merge.windows import ANY
from nola_edge.models.dora import merge_outputs_
from nola_edge.models.plan import check_orientations, plan_merges, tensors_of
from nola_edge.models.resident import check_resident, check_whole_outputs
from nola_edge.torch.arrays import tensor_view
from nola_edge.torch.merge import merge_many_
from nola_edge.torch.sharding import local_window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from nola_edge.files.tensors import Tensor
    from nola_edge.models.plan import ParameterMerge
    from nola_edge.torch.addends import Addend

#: No weight of a model is so large that an update of ordinary size could make it infinite.
_BEYOND_MODELS = 1e38


def merge_(
    model: nn.Module,
    adapter: Any,
    *,
    rename: Mapping[str, str] | Iterable[str] | None = None,
) -> list[str]:
    """Merge adapters into a model in memory, in place.

    Weights and biases get the same bits as by merging into a checkpoint of the same dtype; tensors
    that an adapter stores whole (``modules_to_save``, biases) replace the model's.

    Names are matched like those of a checkpoint: exactly, or by their one common prefix difference.
    Everything is checked before the first weight changes, so a refusal leaves the model as it was.
    This includes that every merged weight will be finite, except where the model itself holds what
    no model should: infinity, NaN, or numbers near the end of bfloat16's or float32's range.
    Looking for these would mean reading every weight twice. Such values, and events that cannot be
    foreseen (Ctrl-C, a failing device), leave some weights merged and others not, because nothing
    is kept to restore them from; the error says so: load such a model again.

    Parameters that are DTensors (FSDP2, tensor parallelism) are merged part by part: each process
    computes the rows and columns that it holds, and nothing is communicated; therefore DoRA is
    refused where outputs are split, and each process checks only what it holds itself.

    Parameters
    ----------
    model : nn.Module
        With parameters on any device, in float32, float16 or bfloat16; not offloaded.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
    rename : mapping from NEW to OLD, or iterable of "NEW=OLD", optional
        For a model that calls OLD what an adapter calls NEW; see
        :func:`nola_edge.merge_checkpoint`.

    Returns
    -------
    list of str
        Names of the changed tensors: first those merged, then those replaced.

    Raises
    ------
    NolaEdgeError
        If adapter and model do not fit, an adapted weight is not in memory or also belongs to
        another parameter, or a merged weight would not be finite; nothing was changed, unless the
        message says otherwise.
    """
    tensors = tensors_of(model)
    where = Path(f"<{type(model).__name__}>")
    renames = Renames(rename)
    plan = plan_merges(tensors, load_adapters(adapter), where, renames)
    renames.check_used()
    check_orientations(model, plan, where)
    check_resident(tensors, plan.names, where)
    matrices = {name: as_matrix(tensors[name].data) for name in plan.merges}
    for name, merge in plan.merges.items():
        check_whole_outputs(matrices[name], merge.needs, name, where)
    check_finite(matrices, plan.merges, where)
    try:
        _merge_all_([(matrices[name], merge) for name, merge in plan.merges.items()])
    except NotFiniteError as error:
        error.message += (
            ": the model itself holds infinite, NaN or near-infinite weights; some "
            "are merged now and others not, so load it again"
        )
        error.file = where
        raise
    for name, values in plan.replaced.items():
        replace_(tensors[name].data, values)
    return plan.names


def _merge_all_(merges: Sequence[tuple[torch.Tensor, ParameterMerge]]) -> None:
    merge_many_([(w, m.addends, m.transposed) for w, m in merges if m.needs == ANY])
    for weight, merge in merges:
        if merge.needs != ANY:
            merge_outputs_(weight, merge)


def merge_one_(weight: torch.Tensor, merge: ParameterMerge) -> None:
    """Merge into one weight, or bias as a matrix, in place.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN; the weight may then hold it.
    """
    _merge_all_([(weight, merge)])


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight as it is, and a bias as a matrix of one column on the same memory."""
    return tensor if tensor.dim() == 2 else tensor.unsqueeze(1)


@torch.no_grad()
def replace_(tensor: torch.Tensor, values: Tensor) -> None:
    """Write a whole tensor of an adapter over a model's; of a DTensor, the part on this process.

    Parameters
    ----------
    tensor : torch.Tensor
        On any device.
    values : Tensor
        Of the same shape and dtype.
    """
    part: Any = (*(slice(*window) for window in local_window(tensor)), ...)
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    local.copy_(tensor_view(values.array()[part]))


@torch.no_grad()
def check_finite(
    matrices: Mapping[str, torch.Tensor], planned: Mapping[str, ParameterMerge], model: Path
) -> None:
    """Refuse merges whose result would not be finite, before any of them is done.

    A weight whose update is nowhere near the end of bfloat16's or float32's range is not looked at.
    One whose elements, and whatever its update may add to them, stay within its dtype needs no more
    than being read. Another is merged into a copy, one at a time; with DoRA, all are.

    Parameters
    ----------
    matrices : mapping from name to Tensor
        In memory; a DTensor's part on this process is looked at.
    planned : mapping from name to ParameterMerge
    model : Path
        Named in errors.

    Raises
    ------
    NotFiniteError
    """
    for name, merge in planned.items():
        weight = matrices[name]
        if merge.needs == ANY and _is_surely_finite(weight, merge.addends):
            continue
        try:
            merge_one_(weight.clone(), merge)
        except NotFiniteError as error:
            raise NotFiniteError(error.message, file=model, field=name) from None


def _is_surely_finite(weight: torch.Tensor, addends: Sequence[Addend]) -> bool:
    local: Any = weight.to_local() if hasattr(weight, "to_local") else weight
    limit, update = torch.finfo(local.dtype).max, _largest_update(addends)
    if not local.numel() or (limit > _BEYOND_MODELS and update < limit / 2):
        return True
    # Compared so that a NaN, which any extreme becomes that meets one, is not within the limit.
    low, high = (float(extreme) for extreme in torch.aminmax(local))
    return max(-low, high) + update <= limit


def _largest_update(addends: Sequence[Addend]) -> float:
    """Bound the elements of an update; doubled, for what roundings may add."""
    return 2 * sum(abs(s) * factors.largest_product(*given) for factors, *given, s in addends)
