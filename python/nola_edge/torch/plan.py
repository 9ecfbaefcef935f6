"""What adapters do to which of a model's parameters, checked before anything changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.errors import AdapterError, MismatchError
from nola_edge.merge.fit import check_shapes, location
from nola_edge.merge.matching import match_modules
from nola_edge.merge.plan import load_adapters
from nola_edge.merge.update import Term as StoredTerm
from nola_edge.merge.update import stored_features
from nola_edge.torch.factors import Factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.adapter import Adapter

#: Factors, alpha, beta, scaling: one adapter's share in one weight.
Term = tuple[Factors, torch.Tensor, torch.Tensor, float]

#: Dtypes that can be merged, with their names in files.
MERGEABLE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass
class PlannedMerge:
    """What is to be merged into one parameter.

    Attributes
    ----------
    transposed : bool
        The parameter is (in, out).
    terms : list of (Factors, alpha, beta, scaling)
        One for each adapter that changes it.
    stored : list of nola_edge.merge.update.Term
        The same, for a weight that is read from a file.
    """

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
    owners: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        owners.setdefault(id(parameter), []).append(name)
    planned: dict[str, PlannedMerge] = {}
    for adapter, share in load_adapters(adapters):
        config = adapter.config
        where = location(adapter)
        if adapter.whole_tensors:
            raise AdapterError(
                "carries whole tensors (modules_to_save or bias), which a model in memory takes "
                "through load_state_dict; merge into a checkpoint instead",
                file=where,
            )
        names = match_modules(list(adapter.modules), parameters, adapter=where, base=model)
        shapes: dict[str, tuple[int, int]] = {}
        for module, name in names.items():
            weight = parameters[name]
            _check_target(name, weight, [n for n in owners[id(weight)] if n != name], model)
            merge = planned.setdefault(name, PlannedMerge(config.fan_in_fan_out))
            if merge.transposed != config.fan_in_fan_out:
                raise MismatchError(
                    "adapters disagree about fan_in_fan_out", file=model, field=name
                )
            shapes[module] = stored_features(tuple(weight.shape), config.fan_in_fan_out)
            merge.terms.append(_term(adapter, module, shapes[module], share * config.scaling))
            merge.stored.append(StoredTerm(adapter, module, share, config.fan_in_fan_out))
        check_shapes(adapter, shapes, model)
    return planned


def _check_target(name: str, weight: torch.Tensor, others: list[str], model: Path) -> None:
    if weight.dim() != 2 or weight.dtype not in MERGEABLE:
        raise MismatchError(
            f"is {weight.dtype} {list(weight.shape)}, not a float matrix", file=model, field=name
        )
    if others:
        raise MismatchError(
            f"is the same tensor as {others[0]}, which the adapter was not trained for; "
            "give each a tensor of its own first (tie_word_embeddings=False)",
            file=model,
            field=name,
        )


def _term(adapter: Adapter, module: str, shape: tuple[int, int], scaling: float) -> Term:
    config = adapter.config
    out_features, in_features = shape
    basis: Any = config.basis
    factors = Factors(module, config.r, in_features, out_features, config.seed, basis)
    held = adapter.modules[module]
    # On the CPU by name: the default device may be meta, while a model is made.
    alpha, beta = (torch.tensor(values, device="cpu") for values in (held.alpha, held.beta))
    return factors, alpha, beta, scaling
