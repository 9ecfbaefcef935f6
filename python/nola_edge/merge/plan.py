"""Check adapters against a base completely, before anything is written.

A plan says for every tensor of the result where it comes from: untouched bytes of the base, a
merge, or a whole tensor of an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.belongs import (
    check_biases,
    check_factor_sizes,
    check_fingerprint,
    check_shapes,
    location,
)
from nola_edge.adapters.fingerprints import base_fingerprint
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.module_names import match_parts
from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import WEIGHT
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    MismatchError,
    printable,
)
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.merge.dora import check_alone
from nola_edge.merge.low_rank import Term
from nola_edge.merge.merged import Merged
from nola_edge.merge.orientation import check_orientations
from nola_edge.merge.parts import segments
from nola_edge.merge.result import Stored, Whole
from nola_edge.merge.stacks import MergedStack, Stacks
from nola_edge.merge.target import Target
from nola_edge.merge.tied import check_tied
from nola_edge.merge.weighted import check_weight, weighted
from nola_edge.merge.whole_tensors import plan_biases, plan_whole_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nola_edge.adapters.module_names import Matches
    from nola_edge.adapters.renames import Renames
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.files.tensors import Tensor


_OVERRIDE = "pass --no-check-base (in Python check_base=False)"
_MADE_FROM = "merge the F32, F16 or BF16 checkpoint that it was made from"
#: Dtype that cannot be merged -> what to do, if it is not made from another.
_ADVICE = {
    "F64": "convert the base first: from_pretrained(…, dtype=torch.float32), then save_pretrained"
}


@dataclass(frozen=True, eq=False, repr=False)
class MergePlan:
    """What a merge will do.

    Attributes
    ----------
    base : Checkpoint
    adapters : tuple of (LowRankAdapter, float)
        With the weight of each.
    merges : dict
        Tensor name -> the terms merged into it.
    replaced : dict
        Tensor name -> the whole tensor that takes its place, in the base's dtype.
    added : dict
        Tensor name -> a whole tensor that the base does not have.
    stacks : Stacks, optional
        Of the base, where an adapter changes matrices of them.
    called : dict
        Tensor name -> what an adapter that changes the tensor calls it.
    """

    base: Checkpoint
    adapters: tuple[tuple[LowRankAdapter, float], ...]
    merges: dict[str, tuple[Term, ...]] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    stacks: Stacks | None = None
    called: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> tuple[SafetensorsFile, TensorInfo]:
        """Return the base's file and entry of a tensor, or of a matrix of a stack."""
        if name in self.base.tensors or self.stacks is None:
            return self.base.tensors[name]
        return self.stacks.matrices[name]

    @property
    def tensors(self) -> Mapping[str, tuple[SafetensorsFile, TensorInfo]]:
        """Return the base's tensors, and the matrices of its stacks that adapters may change."""
        if self.stacks is None:
            return self.base.tensors
        return {**self.base.tensors, **self.stacks.matrices}

    @property
    def merged(self) -> list[str]:
        """Return the names of the base's tensors that adapters are merged into."""
        return [name for name in self.base.tensors if name in self.merges or self._parts(name)]

    def _parts(self, name: str) -> tuple[str, ...]:
        """Return the matrices of a stack, if one of them is merged into."""
        parts = () if self.stacks is None else self.stacks.names.get(name, ())
        return parts if any(part in self.merges for part in parts) else ()

    @property
    def names(self) -> list[str]:
        """Return the names of the result's tensors, in order."""
        return [*self.base.tensors, *self.added]

    def changes(self, name: str) -> bool:
        """Tell whether a tensor of the base is another one in the result."""
        return name in self.merges or name in self.replaced or bool(self._parts(name))

    def result(self, name: str) -> Stored | Whole | Merged | MergedStack:
        """Return what a tensor of the result is made of.

        Raises
        ------
        KeyError
            If the result has no such tensor.
        """
        whole = self.replaced.get(name, self.added.get(name))
        if whole is not None:
            return Whole(whole)
        parts = self._parts(name)
        if parts:
            return MergedStack(*self.tensor(name), tuple(map(self._matrix, parts)))
        return self._matrix(name)

    def _matrix(self, name: str) -> Stored | Merged:
        file, info = self.tensor(name)
        terms = self.merges.get(name)
        return Stored(file, info) if terms is None else Merged(file, info, terms)


def load_adapters(adapters: Any) -> tuple[tuple[LowRankAdapter, float], ...]:
    """Turn what a caller may give for adapters into loaded adapters with weights.

    Parameters
    ----------
    adapters : Adapter, path, or sequence of these or of pairs (adapter, weight)
        A mapping from paths to weights will do too.

    Raises
    ------
    ArgumentError
        If there is no adapter, they come in no order, or a weight is not a finite number.

    Warns
    -----
    NolaEdgeWarning
        If the factors of one are multiplied by 0, or its whole tensors have a weight.
    """
    kinds = (str, Path, LowRankAdapter)
    loaded: list[tuple[LowRankAdapter, float]] = []
    for given, weight in weighted(adapters, kinds, "neither an Adapter nor a path"):
        adapter = given
        if not isinstance(given, LowRankAdapter):
            arguments.path("adapter", given)
            adapter = load_adapter(given)
        check_weight(adapter, weight)
        loaded.append((adapter, weight))
    if not loaded:
        raise ArgumentError("at least one adapter is needed", field="adapter")
    return tuple(loaded)


def plan_merge(
    base: Checkpoint,
    adapters: tuple[tuple[LowRankAdapter, float], ...],
    *,
    check_base: bool = True,
    renames: Renames | None = None,
    override: str = _OVERRIDE,
) -> MergePlan:
    """Check every adapter against the base and say where each result tensor comes from.

    Parameters
    ----------
    base : Checkpoint
    adapters : tuple of (LowRankAdapter, float)
    check_base : bool
        Refuse an adapter whose recorded base fingerprint is another's.
    renames : Renames, optional
        What the base calls modules of the adapters.
    override : str
        How to merge anyway, for that refusal; empty if there is no way.

    Raises
    ------
    MismatchError
        If a module is absent, has another shape or a dtype that cannot be merged, or the base is
        not the one the adapter was made for.
    AdapterError
        If two adapters bring the same whole tensor.
    """
    of_stacks = any(adapter.needs_base for adapter, _ in adapters)
    stored = {name: tuple(info.shape) for name, (_, info) in base.tensors.items()}
    adapters = tuple((adapter.for_base(stored, base.path), w) for adapter, w in adapters)
    plan = MergePlan(base, adapters, stacks=Stacks(base) if of_stacks else None)
    tensors = plan.tensors
    for adapter, weight in adapters:
        matches = match_parts(
            list(adapter.modules),
            tensors,
            StoredNames(adapter.tensors, renames),
            adapter.whole_tensors.tensors,
            adapter=location(adapter),
            base=base.path,
        )
        targets = {m: _target(plan, adapter, m, part) for m, part in matches.parts.items()}
        for module, target in targets.items():
            terms = plan.merges.get(target.tensor, ())
            plan.merges[target.tensor] = (*terms, Term(adapter, module, weight, target))
        shapes = {module: target.features for module, target in targets.items()}
        check_shapes(adapter, shapes, base.path)
        biases = (part.bias.tensor for part in matches.parts.values())
        check_biases(adapter, biases, base.tensors, base.path)
        if check_base:
            _check_fingerprint(plan, adapter, targets, override, matches.names)
        plan_whole_tensors(plan, adapter, matches)
        plan_biases(plan, adapter, weight, matches)
        plan.called.update(_called(adapter, matches))
    for name, terms in plan.merges.items():
        for _, together in segments(terms, plan.tensor(name)[1].shape):
            check_alone(together, name)
    check_orientations(base, plan.merges.values())
    check_tied(plan)
    return plan


def _called(adapter: LowRankAdapter, matches: Matches) -> Iterator[tuple[str, str]]:
    """Yield tensors that an adapter changes, parts of one aside, each with its name for it."""
    for module, part in matches.parts.items():
        if part.lines is None:
            yield part.tensor, module + WEIGHT
            if module in adapter.added_biases:
                yield part.bias.tensor, f"{module}.bias"
    for name, part in matches.whole.items():
        if part.lines is None:
            yield part.tensor, name


def _target(plan: MergePlan, adapter: LowRankAdapter, module: str, part: TensorPart) -> Target:
    """Say how a stored tensor holds the weight of a module."""
    name = part.tensor
    shape, transposed = _weight_shape(plan, adapter, module, name), adapter.transposed(module)
    if name in plan.replaced:
        raise AdapterError(
            "would be merged into, but an earlier adapter replaces it as a whole",
            file=location(adapter),
            field=name,
        )
    whole = Target.whole(name, shape, transposed)
    if part.lines is None:
        return whole
    if part.lines[1] > whole.out_features:
        raise MismatchError(
            f"has {whole.out_features} outputs, but module {printable(module)!r} of "
            f"{printable(str(location(adapter)))} would take outputs {part.lines[0]} to "
            f"{part.lines[1]}",
            file=plan.tensor(name)[0].path,
            field=name,
            value=part.lines[1],
        )
    return Target.part(name, shape, transposed, part.lines)


def _weight_shape(
    plan: MergePlan, adapter: LowRankAdapter, module: str, name: str
) -> tuple[int, ...]:
    """Check the stored tensor of a module, and return its shape."""
    file, info = plan.tensor(name)
    where: dict[str, Any] = {"file": file.path, "field": name}
    if len(info.shape) != 2:
        raise MismatchError(
            f"has shape {list(info.shape)}, but module {printable(module)!r} of "
            f"{printable(str(location(adapter)))} needs a matrix",
            **where,
        )
    if info.dtype not in MERGEABLE:
        advice = _ADVICE.get(info.dtype, _MADE_FROM)
        raise MismatchError(f"has dtype {info.dtype}, which cannot be merged; {advice}", **where)
    check_factor_sizes(adapter, module, info.shape, file.path, name)
    return info.shape


def _check_fingerprint(
    plan: MergePlan,
    adapter: LowRankAdapter,
    targets: Mapping[str, Target],
    override: str,
    names: StoredNames,
) -> None:
    if adapter.base_fingerprint is None:
        return
    stored = [(module, *plan.tensor(target.tensor)) for module, target in targets.items()]
    renamed = any(names.renames.apply(module) is not None for module in targets)
    found = base_fingerprint(stored)
    check_fingerprint(adapter, found, plan.base.path, override, renamed=renamed)
