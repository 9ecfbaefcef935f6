"""Merge adapters into the weights of a whole model: all of them, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.errors import NotFiniteError
from nola_edge.models.plan import check_resident, plan_merges
from nola_edge.torch.merge import merge_factors_, merge_many_

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from nola_edge.models.plan import PlannedMerge
    from nola_edge.torch.terms import Term

#: No weight of a model is so large that an update of ordinary size could make it infinite.
_BEYOND_MODELS = 1e38


def merge_(model: nn.Module, adapter: Any) -> list[str]:
    """Merge adapters into the weights of a model in memory, in place.

    Names are matched like those of a checkpoint: exactly, or by their one common prefix
    difference. Everything is checked before the first weight changes, so a refusal leaves the model
    as it was. Also that every merged weight will be finite, unless only a base could prevent that
    which holds what no model does: infinity, NaN, or numbers near the end of bfloat16's or
    float32's range. Looking for these would mean to read every weight twice. They, and what cannot
    be foreseen (Ctrl-C, a failing device), leave some weights merged and others not, since nothing
    is kept to restore them from; the error says so: load such a model anew.

    Parameters that are DTensors (FSDP2, tensor parallelism) are merged part by part: each process
    computes the rows and columns that it holds, and nothing is communicated. A process refuses for
    what it holds itself.

    Parameters
    ----------
    model : nn.Module
        With parameters on any device, in float32, float16 or bfloat16; not offloaded.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)

    Returns
    -------
    list of str
        Names of the parameters that were merged.

    Raises
    ------
    NolaEdgeError
        If adapter and model do not fit, an adapted weight is not in memory or is another
        parameter's too, or a merged weight would not be finite; nothing was changed, unless the
        message says otherwise.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    where = Path(f"<{type(model).__name__}>")
    planned = plan_merges(parameters, adapter, where)
    check_resident(parameters, planned, where)
    check_finite(parameters, planned, where)
    merges = [(parameters[name].data, m.terms, m.transposed) for name, m in planned.items()]
    try:
        merge_many_(merges)
    except NotFiniteError as error:
        error.message += (
            ": the model itself holds infinite, NaN or near-infinite weights; some are merged now "
            "and others not, so load it anew"
        )
        error.file = where
        raise
    return list(planned)


@torch.no_grad()
def check_finite(
    parameters: Mapping[str, torch.Tensor], planned: Mapping[str, PlannedMerge], model: Path
) -> None:
    """Refuse merges whose result would not be finite, before any of them is done.

    A weight whose update is nowhere near the end of bfloat16's or float32's range is not looked at.
    One whose elements, and whatever its update may add to them, stay within its dtype needs no more
    than being read. Another is merged into a copy, one at a time.

    Parameters
    ----------
    parameters : mapping from name to Tensor
        In memory; a DTensor's part on this process is looked at.
    planned : mapping from name to PlannedMerge
    model : Path
        Named in errors.

    Raises
    ------
    NotFiniteError
    """
    for name, merge in planned.items():
        weight = parameters[name].data
        if _is_surely_finite(weight, merge.terms):
            continue
        try:
            merge_factors_(weight.clone(), merge.terms, transposed=merge.transposed)
        except NotFiniteError as error:
            raise NotFiniteError(error.message, file=model, field=name) from None


def _is_surely_finite(weight: torch.Tensor, terms: Sequence[Term]) -> bool:
    local: Any = weight.to_local() if hasattr(weight, "to_local") else weight
    limit, update = torch.finfo(local.dtype).max, _largest_update(terms)
    if not local.numel() or (limit > _BEYOND_MODELS and update < limit / 2):
        return True
    # Compared so that a NaN, which any extreme becomes that meets one, is not within the limit.
    low, high = (float(extreme) for extreme in torch.aminmax(local))
    return max(-low, high) + update <= limit


def _largest_update(terms: Sequence[Term]) -> float:
    """Bound the elements of an update; doubled, for what roundings may add."""
    return 2 * sum(abs(s) * factors.largest_product(*given) for factors, *given, s in terms)
