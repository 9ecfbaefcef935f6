"""Which rules would give modules and whole tensors of an adapter their places in a base."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.stored_names import namesake
from nola_edge.adapters.tensor_parts import WEIGHT, overlapping
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from nola_edge.adapters.stored_names import StoredNames

    Parts = Sequence[str]

#: Rules that a suggestion may have: as many as a model has towers, and a head.
_MOST_RULES = 5
#: Names that a rule on a command line can have.
_PLAIN = r"[\w-]+(\.[\w-]+)+"


def suggested_renames(
    modules: Iterable[str], whole: Iterable[str], tensors: Collection[str], names: StoredNames
) -> dict[str, str]:
    """Return the rules that give every module a weight, if they are unique; otherwise none.

    With them, and the caller's, no whole tensor is left beside its namesake either. Each rule comes
    from the tensor whose name ends like a wanted one for longest, if that is one rule. It is a
    suggestion by names alone.

    Parameters
    ----------
    modules : iterable of str
    whole : iterable of str
        Names of the tensors that the adapter has whole.
    tensors : collection of str
        Those of the base.
    names : StoredNames
        With the caller's rules.
    """
    modules, whole = list(modules), list(whole)
    given, rules = names.renames.rules, dict[str, str]()
    while len(rules) <= _MOST_RULES:
        renamed = names.with_renames({**given, **rules})
        lost = next(_lost(modules, whole, tensors, renamed), None)
        if lost is None:
            parts = {module + WEIGHT: renamed.module(module, tensors) for module in modules}
            parts |= {name: renamed.tensor(name) for name in whole}
            return rules if overlapping(parts) is None else {}
        found = _rules(lost, tensors)
        if len(found) != 1 or dict(found).keys() & {**given, **rules}.keys():
            return {}
        rules.update(found)
    return {}


def _lost(
    modules: Iterable[str], whole: Iterable[str], tensors: Collection[str], names: StoredNames
) -> Iterator[str]:
    """Yield what has no tensor in the base, and what would be added beside its namesake."""
    for module in modules:
        if names.module(module, tensors).tensor not in tensors:
            yield module + WEIGHT
    for name in whole:
        if namesake(names.tensor(name).tensor, tensors) is not None and not names.keeps(name):
            yield name


def rename_options(rules: Mapping[str, str]) -> str:
    """Return rules as a command line has them."""
    return " ".join(f"--rename {printable(new)}={printable(old)}" for new, old in rules.items())


def _rules(name: str, tensors: Iterable[str]) -> set[tuple[str, str]]:
    """Return what to replace in a name so that it is one of the best tensors' names."""
    module, last = _split(name)
    best: dict[int, set[tuple[str, str]]] = {}
    for other in tensors:
        tensor, ending = _split(other)
        alike = _alike(module[::-1], tensor[::-1])
        if ending == last and (alike > 1 or 0 < alike == min(len(module), len(tensor))):
            best.setdefault(alike, set()).add(_rule(module, tensor, alike))
    return best[max(best)] if best else set()


def _split(name: str) -> tuple[Parts, str]:
    """Return the parts of a tensor's module, and its own name; none of what no rule can name."""
    if re.fullmatch(_PLAIN, name) is None:
        return (), ""
    *module, last = name.split(".")
    return module, last


def _rule(module: Parts, tensor: Parts, alike: int) -> tuple[str, str]:
    begin = min(_alike(module, tensor), len(module) - alike, len(tensor) - alike)
    end = alike
    if begin in (len(module) - alike, len(tensor) - alike):  # nothing is left of one of them
        begin, end = (begin - 1, end) if begin else (begin, end - 1)
    new, old = module[begin : len(module) - end], tensor[begin : len(tensor) - end]
    return ".".join(new), ".".join(old)


def _alike(one: Parts, other: Parts) -> int:
    """Return how many parts two names begin with alike."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
