"""Which modules an exported LoRA has, and of which terms each is the sum."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.belongs import location
from nola_edge.adapters.module_names import Prefix
from nola_edge.adapters.tensor_parts import WEIGHT, TensorPart, tensors_field
from nola_edge.errors import ArgumentError, printable
from nola_edge.merge.low_rank import Term
from nola_edge.merge.parts import segments
from nola_edge.merge.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.adapters.renames import Renames
    from nola_edge.merge.plan import MergePlan

    Adapters = tuple[tuple[LowRankAdapter, float], ...]
    Modules = dict[str, tuple[Term, ...]]


def modules_alone(adapters: Adapters) -> Modules:
    """Return the modules of the output where no base is at hand: those of one adapter.

    Raises
    ------
    ArgumentError
        If there are several adapters, or it does not say itself how large its modules are.
    """
    (adapter, weight), *others = adapters
    if others:
        raise ArgumentError(
            "is needed where adapters are joined: add --base BASE (in Python base=)", field="base"
        )
    modules: Modules = {}
    for module in adapter.modules:
        shape = adapter.shape(module)
        if shape is None:
            recorded = adapter.bookkeeping.get("base_model_name_or_path")
            base = recorded if isinstance(recorded, str) and recorded else "BASE"
            raise ArgumentError(
                f"is needed, as the files of {printable(location(adapter))} do not say how large "
                f"its modules are: add --base {printable(shlex.quote(base))} (in Python base=)",
                field="base",
            )
        transposed = adapter.transposed(module)
        stored = shape[::-1] if transposed else shape
        target = Target.whole(module + WEIGHT, stored, transposed)
        modules[module] = (Term(adapter, module, weight, target),)
    return modules


def modules_of_plan(plan: MergePlan) -> Modules:
    """Return the modules of the output: name -> the terms that it is the sum of.

    Names are the adapters' own, if they agree and all differ from the base's in the same way; else
    the base's.

    Raises
    ------
    ArgumentError
        If adapters see different modules in one tensor of the base.
    """
    divided = [
        part
        for name, terms in plan.merges.items()
        for part in segments(terms, plan.tensor(name)[1].shape)
    ]
    own = {terms[0].module: tuple(terms) for _, terms in divided}
    if len(own) == len(divided) and _agree(plan, own.values()):
        return own
    for name, terms in plan.merges.items():
        shape = plan.tensor(name)[1].shape
        if not all(term.target.is_whole(shape) for term in terms):
            raise ArgumentError(
                f"{printable(name)} holds several modules, and the adapters change different ones; "
                "export them one by one, or merge",
                field="adapter",
            )
    return {name.removesuffix(WEIGHT): terms for name, terms in plan.merges.items()}


def _agree(plan: MergePlan, modules: Iterable[Sequence[Term]]) -> bool:
    """Tell whether adapters call modules alike."""
    terms = [term for found in modules for term in found]
    if len(plan.adapters) == 1:
        return True
    alike = all(term.module == found[0].module for found in modules for term in found)
    prefixes = {Prefix.of(term.module + WEIGHT, term.target.tensor) for term in terms}
    recorded = all(adapter.tensors for adapter, _ in plan.adapters)
    return alike and (len(prefixes) == 1 or recorded)


def record_of(plan: MergePlan, modules: Modules, renames: Renames) -> dict[str, Any]:
    """Return the field that says which stored tensors modules are, if prefixes alone do not."""
    if not renames and not any(adapter.tensors for adapter, _ in plan.adapters):
        return {}
    parts: dict[str, TensorPart] = {}
    for name, terms in modules.items():
        target = terms[0].target
        is_whole = target.is_whole(plan.tensor(target.tensor)[1].shape)
        part = TensorPart(target.tensor, None if is_whole else target.lines)
        if part != TensorPart(name + WEIGHT):
            parts[name] = part
    whole = {n: p for adapter, _ in plan.adapters for n, p in adapter.tensors.items()}
    parts.update({n: p for n, p in whole.items() if n not in modules})
    return tensors_field(parts)
