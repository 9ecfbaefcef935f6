"""What adapters do to which of a model's parameters, checked before anything changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from nola_edge.adapters import Adapter
from nola_edge.adapters.belongs import check_biases, check_no_stacks, check_shapes, location
from nola_edge.adapters.module_names import match_parts
from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import WEIGHT
from nola_edge.errors import AdapterError, MismatchError, printable
from nola_edge.merge.dora import check_alone
from nola_edge.merge.low_rank import Term, needs_of
from nola_edge.merge.orientation import may_be_turned, orientation_refused
from nola_edge.merge.target import Target
from nola_edge.merge.whole_tensors import fitted
from nola_edge.models.mapped_memory import find_shared
from nola_edge.torch.addends import MERGEABLE, Addend
from nola_edge.torch.factors import Factors
from nola_edge.torch.linear import is_conv1d as is_conv1d_layer
from nola_edge.torch.stored_factors import BiasFactors, StoredFactors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.adapters.renames import Renames
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.windows import WholeLines


_CONVERT = "; convert the model first: model.to(torch.float32)"


@dataclass
class ParameterMerge:
    """What is to be merged into one parameter.

    Attributes
    ----------
    shape : (int, int)
        Of the parameter; a bias is a matrix of one column.
    transposed : bool
        The parameter is (in, out).
    addends : list of (factors, alpha, beta, scaling)
        One for each adapter that changes it.
    terms : list of Term
        The same, for a weight that is read from a file; of a bias none.
    """

    shape: tuple[int, int]
    transposed: bool = False
    addends: list[Addend] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)

    @property
    def needs(self) -> WholeLines:
        """Return which lines must be held whole, as DoRA needs its outputs."""
        return needs_of(self.terms)


@dataclass
class ModelPlan:
    """What adapters do to a model.

    Attributes
    ----------
    merges : dict
        Parameter name -> :class:`ParameterMerge`.
    replaced : dict
        Name of a parameter or buffer -> the whole tensor that takes its place, in its dtype.
    """

    merges: dict[str, ParameterMerge] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Return what changes."""
        return [*self.merges, *self.replaced]

    def __contains__(self, name: str) -> bool:
        return name in self.merges or name in self.replaced


def plan_merges(
    tensors: Mapping[str, torch.Tensor],
    adapters: Iterable[tuple[LowRankAdapter, float]],
    model: Path,
    renames: Renames | None = None,
) -> ModelPlan:
    """Find which tensors of a model adapters change, and how.

    Parameters
    ----------
    tensors : mapping from name to Tensor
        All of a model's parameters and buffers (:func:`tensors_of`), a shared one under each of its
        names; on any device, meta too.
    adapters : iterable of (LowRankAdapter, float)
    model : Path
        Named in errors.
    renames : Renames, optional
        What the model calls modules of the adapters.

    Raises
    ------
    NolaEdgeError
        If adapters and model do not fit.
    """
    planner = _Planner(tensors, model, renames)
    for adapter, share in adapters:
        planner.add(adapter, share)
    for name, merge in planner.plan.merges.items():
        check_alone(merge.terms, name)
    return planner.plan


def check_orientations(model: torch.nn.Module, plan: ModelPlan, where: Path) -> None:
    """Refuse terms that take a square Conv1D for a Linear, or the reverse.

    Of layers of other classes, what the adapter says is true.

    Raises
    ------
    MismatchError
    """
    for name, merge in plan.merges.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        is_conv1d = is_conv1d_layer(layer)
        if is_conv1d == merge.transposed or not (is_conv1d or isinstance(layer, torch.nn.Linear)):
            continue
        for term in filter(may_be_turned, merge.terms):
            raise orientation_refused(term.adapter, name, is_conv1d, where)


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters and buffers by name, a shared one under each of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


class _Planner:
    """Adds one adapter after the other to a plan; see :func:`plan_merges`."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], model: Path, renames: Renames | None
    ) -> None:
        self.plan = ModelPlan()
        # In memory, modules have the names that they were trained under, unless a caller knows.
        self._stored = StoredNames({}, renames)
        self._tensors = tensors
        self._shared = find_shared(tensors)
        self._model = model

    def add(self, adapter: LowRankAdapter, share: float) -> None:
        """Plan what an adapter changes."""
        check_no_stacks(adapter, "merge it into the files, and load those")
        matches = match_parts(
            list(adapter.modules),
            self._tensors,
            self._stored,
            adapter.whole_tensors.tensors,
            adapter=location(adapter),
            base=self._model,
        )
        names, whole = self._names(matches.parts), self._names(matches.whole)
        shapes = {
            module: self._add_weight(adapter, module, name, share) for module, name in names.items()
        }
        check_shapes(adapter, shapes, self._model)
        biases = (part.bias.tensor for part in matches.parts.values())
        check_biases(adapter, biases, self._tensors, self._model)
        for name, values in adapter.whole_tensors.tensors.items():
            self._replace(adapter, whole[name], values)
        for module in adapter.added_biases:
            bias = names[module].removesuffix(WEIGHT) + ".bias"
            scaling = share * adapter.scaling_of(module)
            self._add_bias(adapter, bias, module, scaling)

    def _names(self, parts: Mapping[str, TensorPart]) -> dict[str, str]:
        for name, part in parts.items():
            if part.lines is not None:
                raise self._refusal(
                    part.tensor,
                    f"would be changed in a part, for {printable(name)}: a model in memory has its "
                    "layers apart; leave [START:STOP] out",
                )
        return {name: part.tensor for name, part in parts.items()}

    def _add_weight(
        self, adapter: LowRankAdapter, module: str, name: str, share: float
    ) -> tuple[int, int]:
        """Plan the merge of a weight; return its module's (out_features, in_features)."""
        weight = self._tensors[name]
        if not is_lazy(weight) and weight.dim() != 2:
            raise self._unfit(name, weight, "matrix")
        self._check_target(adapter, name, "matrix")
        rows, cols = weight.shape
        transposed = adapter.transposed(module)
        merge = self.plan.merges.setdefault(name, ParameterMerge((rows, cols), transposed))
        if merge.transposed != transposed:
            raise self._refusal(name, "adapters disagree about fan_in_fan_out")
        target = Target.whole(name, merge.shape, transposed)
        term = Term(adapter, module, share, target)
        merge.addends.append(_addend(adapter, module, target.features, term.scaling))
        merge.terms.append(term)
        return target.features

    def _add_bias(self, adapter: LowRankAdapter, name: str, module: str, scaling: float) -> None:
        who = printable(str(location(adapter)))
        if name not in self._tensors:
            raise self._refusal(
                name,
                f"is missing, but {who} adds to it (lora_bias); train with lora_bias=False, or "
                "give the layer a bias of zeros",
            )
        self._check_target(adapter, name, "vector")
        bias = self._tensors[name]
        shape = adapter.added_biases[module].shape
        if tuple(bias.shape) != shape:
            raise self._refusal(name, f"is {list(bias.shape)}; {who} adds {list(shape)} to it")
        merge = self.plan.merges.setdefault(name, ParameterMerge((bias.shape[0], 1)))
        nothing = torch.empty(0, device="cpu")
        merge.addends.append((BiasFactors(adapter, module), nothing, nothing, scaling))

    def _replace(self, adapter: LowRankAdapter, name: str, values: Tensor) -> None:
        where = location(adapter)
        if name not in self._tensors:
            raise self._refusal(
                name,
                f"is not in the model, but {printable(str(where))} brings it (modules_to_save or "
                "bias); load a model that has it, such as AutoModelForSequenceClassification for "
                "a head",
            )
        if name in self.plan:
            raise AdapterError(
                "the whole tensor is already changed by an adapter here", file=where, field=name
            )
        self._check_not_shared(name)
        tensor = self._tensors[name]
        if is_lazy(tensor) or tensor.dtype not in MERGEABLE:
            raise self._unfit(name, tensor, "tensor")
        dtype = MERGEABLE[tensor.dtype]
        self.plan.replaced[name] = fitted(values, name, tuple(tensor.shape), dtype, where)

    def _check_target(self, adapter: LowRankAdapter, name: str, kind: str) -> None:
        """Refuse what cannot be merged into."""
        weight = self._tensors[name]
        if is_lazy(weight) or weight.dtype not in MERGEABLE:
            raise self._unfit(name, weight, kind)
        self._check_not_shared(name)
        if name in self.plan.replaced:
            raise AdapterError(
                "would be merged into, but an earlier adapter replaces it as a whole",
                file=location(adapter),
                field=name,
            )

    def _check_not_shared(self, name: str) -> None:
        if name in self._shared:
            raise self._refusal(
                name,
                f"is the same tensor as {printable(self._shared[name])}, which the adapter was not "
                "trained for; give each a tensor of its own first (tie_word_embeddings=False, and "
                "a copy)",
            )

    def _unfit(self, name: str, tensor: torch.Tensor, wanted: str) -> MismatchError:
        kind = "yet to be made" if is_lazy(tensor) else f"{tensor.dtype} {list(tensor.shape)}"
        advice = "" if is_lazy(tensor) or tensor.dtype != torch.float64 else _CONVERT
        return self._refusal(
            name, f"is {kind}, not a {wanted} in float32, float16 or bfloat16{advice}"
        )

    def _refusal(self, name: str, reason: str) -> MismatchError:
        return MismatchError(reason, file=self._model, field=name)


def _addend(adapter: LowRankAdapter, module: str, shape: tuple[int, int], scaling: float) -> Addend:
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
