"""What adapters do to which of a model's parameters, checked before anything changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from nola_edge.adapters import Adapter
from nola_edge.adapters.belongs import check_no_magnitudes, check_shapes, location
from nola_edge.adapters.module_names import match_modules
from nola_edge.errors import AdapterError, MismatchError, printable
from nola_edge.merge.low_rank import Term as StoredTerm
from nola_edge.merge.plan import load_adapters
from nola_edge.merge.target import Target
from nola_edge.models.mapped_memory import find_shared, is_resident
from nola_edge.torch.factors import Factors
from nola_edge.torch.sharding import is_one_window
from nola_edge.torch.stored_factors import StoredFactors
from nola_edge.torch.terms import MERGEABLE, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nola_edge.adapters.base import LowRankAdapter


@dataclass
class PlannedMerge:
    """What is to be merged into one parameter.

    Attributes
    ----------
    shape : (int, int)
        Of the parameter.
    transposed : bool
        The parameter is (in, out).
    terms : list of (Factors, alpha, beta, scaling)
        One for each adapter that changes it.
    stored : list of nola_edge.merge.low_rank.Term
        The same, for a weight that is read from a file.
    """

    shape: tuple[int, int]
    transposed: bool
    terms: list[Term] = field(default_factory=list)
    stored: list[StoredTerm] = field(default_factory=list)


def plan_merges(
    parameters: Mapping[str, torch.Tensor], adapters: Any, model: Path
) -> dict[str, PlannedMerge]:
    """Find which parameters adapters change, and how.

    Parameters
    ----------
    parameters : mapping from name to Tensor
        All of a model's, a shared one under each of its names; on any device, meta too.
    adapters : Adapter, path, or sequence of these or of pairs (adapter, weight)
    model : Path
        Named in errors.

    Returns
    -------
    dict
        Parameter name -> what to merge.

    Raises
    ------
    NolaEdgeError
        If adapters and model do not fit.
    """
    shared = find_shared(parameters)
    planned: dict[str, PlannedMerge] = {}
    for adapter, share in load_adapters(adapters):
        where = location(adapter)
        _check_no_other_tensors(adapter, where)
        names = match_modules(list(adapter.modules), parameters, adapter=where, base=model)
        shapes: dict[str, tuple[int, int]] = {}
        for module, name in names.items():
            weight = parameters[name]
            _check_target(name, weight, shared.get(name), model)
            rows, cols = weight.shape
            transposed = adapter.transposed(module)
            merge = planned.setdefault(name, PlannedMerge((rows, cols), transposed))
            if merge.transposed != transposed:
                raise MismatchError(
                    "adapters disagree about fan_in_fan_out", file=model, field=name
                )
            target = Target.whole(name, merge.shape, transposed)
            shapes[module] = target.features
            stored = StoredTerm(adapter, module, share, target)
            merge.terms.append(_term(adapter, module, shapes[module], stored.scaling))
            merge.stored.append(stored)
        check_shapes(adapter, shapes, model)
    return planned


def _check_no_other_tensors(adapter: LowRankAdapter, where: Path) -> None:
    check_no_magnitudes(adapter, "a model in memory is only added to, so merge into a checkpoint")
    for found, what in (
        (adapter.whole_tensors, "whole tensors (modules_to_save or bias)"),
        (adapter.added_biases, "changes of biases (lora_bias)"),
    ):
        if found:
            raise AdapterError(
                f"carries {what}, which a model in memory takes through load_state_dict; merge "
                "into a checkpoint instead",
                file=where,
                field=next(iter(found)),
            )


def _check_target(name: str, weight: torch.Tensor, other: str | None, model: Path) -> None:
    if is_lazy(weight) or weight.dim() != 2 or weight.dtype not in MERGEABLE:
        kind = "yet to be made" if is_lazy(weight) else f"{weight.dtype} {list(weight.shape)}"
        raise MismatchError(f"is {kind}, not a float matrix", file=model, field=name)
    if other is not None:
        raise MismatchError(
            f"is the same tensor as {printable(other)}, which the adapter was not trained for; "
            "give each a tensor of its own first (tie_word_embeddings=False, and a copy)",
            file=model,
            field=name,
        )


def check_resident(
    parameters: Mapping[str, torch.Tensor], names: Iterable[str], model: Path
) -> None:
    """Refuse weights whose values are not in the model, where nothing can be written to them.

    Parameters
    ----------
    parameters : mapping from name to Tensor
    names : iterable of str
        Of those that are to be written.
    model : Path
        Named in errors.

    Raises
    ------
    MismatchError
    """
    for name in names:
        weight = parameters[name]
        if weight.is_meta:
            raise MismatchError(
                "is on the meta device: it is offloaded to the CPU or a disk, or was never loaded; "
                "load the model without offloading, or merge into the files (nola-edge merge) and "
                "load these",
                file=model,
                field=name,
            )
        if not is_resident(weight):
            raise MismatchError(
                f"is a {type(weight.data).__name__}, not a plain tensor; merge into the base "
                "before it is quantised",
                file=model,
                field=name,
            )
        if not is_one_window(weight):
            raise MismatchError(
                "is split over processes in pieces that are not one block of it (a packed layer, "
                "or terms of a sum); merge into the base before it is split",
                file=model,
                field=name,
            )


def _term(adapter: LowRankAdapter, module: str, shape: tuple[int, int], scaling: float) -> Term:
    out_features, in_features = shape
    if not isinstance(adapter, Adapter):
        nothing = torch.empty(0, device="cpu")
        found = StoredFactors(adapter, module, in_features, out_features)
        return found, nothing, nothing, scaling
    config = adapter.config
    basis: Any = config.basis
    factors = Factors(module, config.r, in_features, out_features, config.seed, basis)
    held = adapter.modules[module]
    # On the CPU by name: the default device may be meta, while a model is made.
    alpha, beta = (torch.tensor(values, device="cpu") for values in (held.alpha, held.beta))
    return factors, alpha, beta, scaling
