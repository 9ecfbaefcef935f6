"""What to say of modules that have no weight in a base, and how they might be renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.renames import Renames
from nola_edge.adapters.tensor_parts import WEIGHT
from nola_edge.adapters.whole_tensors import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from nola_edge.adapters.tensor_parts import TensorPart

    Parts = Sequence[str]

_LISTED = 4
#: Rules that a suggestion may have: as many as a model has towers.
_MOST_RULES = 4
_BOTH_WAYS = (
    "If the base has other names for them, give these: --rename NEW=OLD (rename= in Python; "
    "nola_edge.peft.stored_tensors(model) finds the names); or load the model from the base and "
    "save a NOLA adapter again, which records them; or merge while the model loads: "
    "nola_edge.transformers"
)


def unmatched(
    wanted: Mapping[str, TensorPart], tensors: Collection[str], adapter: Path, base: Path
) -> MismatchError:
    """Return the refusal of modules that have no weight in a base.

    Parameters
    ----------
    wanted : mapping
        Module -> what files of its model would call its weight.
    tensors : collection of str
        Those of the base.
    adapter, base : Path
        Named in the message.
    """
    missing = [module for module, part in wanted.items() if part.tensor not in tensors]
    tied = _tied(missing, tensors)
    if tied is not None:
        return _shares(missing, tied, adapter, base)
    first = missing[0]
    stored = wanted[first].tensor
    looked_for = "" if stored == first + WEIGHT else f", stored as {printable(stored)!r}"
    return MismatchError(
        f"{len(missing)} of {len(wanted)} modules of {printable(str(adapter))} have no weight "
        f"here, the first is {printable(first)!r}{looked_for}; {_nearest(stored, tensors)}. "
        f"{_advice(wanted, missing, tensors)}",
        file=base,
        field=first,
    )


def _tied(missing: Iterable[str], tensors: Collection[str]) -> str | None:
    """Return the input embedding that a missing output layer shares."""
    if any(name.endswith(OUTPUT_EMBEDDINGS) for name in tensors):
        return None
    if not any((module + WEIGHT).endswith(OUTPUT_EMBEDDINGS) for module in missing):
        return None
    return next((name for name in tensors if name.endswith(INPUT_EMBEDDINGS)), None)


def _shares(missing: Iterable[str], embedding: str, adapter: Path, base: Path) -> MismatchError:
    output = next(m for m in missing if (m + WEIGHT).endswith(OUTPUT_EMBEDDINGS))
    return MismatchError(
        f"has no weight of its own here, but shares {printable(embedding)!r} "
        f"(tie_word_embeddings), and {printable(str(adapter))} changes the output alone; save "
        f"the base untied ({printable(output)}{WEIGHT} as a tensor of its own, "
        "tie_word_embeddings=False) and merge into that",
        file=base,
        field=output,
    )


def _nearest(stored: str, tensors: Collection[str]) -> str:
    import difflib

    weights = [name for name in tensors if name.endswith(WEIGHT)]
    last = stored.removesuffix(WEIGHT).rsplit(".", 1)[-1] + WEIGHT
    near = difflib.get_close_matches(stored, weights, n=_LISTED, cutoff=0.5)
    near = near or [name for name in weights if name.endswith(last)][:_LISTED]
    if near:
        return "nearest tensors: " + ", ".join(printable(name) for name in near)
    return f"the base has {len(weights)} weights and none with a similar name"


def _advice(
    wanted: Mapping[str, TensorPart], missing: Sequence[str], tensors: Collection[str]
) -> str:
    rules = suggested_renames(missing, tensors) if len(missing) <= len(wanted) else {}
    if not rules:
        return _BOTH_WAYS
    options = " ".join(f"--rename {printable(new)}={printable(old)}" for new, old in rules.items())
    return f"All would have one with {options}; check that these are the same layers. {_BOTH_WAYS}"


def suggested_renames(modules: Sequence[str], tensors: Collection[str]) -> dict[str, str]:
    """Return the rules that give every module a weight, if they are unique; otherwise none.

    Each rule comes from the tensor whose name ends like a module's for longest, if that is one
    rule. It is a suggestion by names alone.
    """
    rules: dict[str, str] = {}
    ends = [name.removesuffix(WEIGHT).split(".") for name in tensors if name.endswith(WEIGHT)]
    left = list(modules)
    while left and len(rules) < _MOST_RULES:
        found = _rules(left[0].split("."), ends)
        if len(found) != 1:
            return {}
        rules.update(found)
        renames = Renames(rules)
        left = [m for m in modules if f"{renames.apply(m) or m}{WEIGHT}" not in tensors]
    renames = Renames(rules)
    named = {renames.apply(module) for module in modules}
    return rules if not left and len(named) == len(modules) else {}


def _rules(module: Parts, tensors: Iterable[Parts]) -> set[tuple[str, str]]:
    """Return what to replace in a module's name so that it is one of the best tensors' names."""
    best: dict[int, set[tuple[str, str]]] = {}
    for tensor in tensors:
        alike = _alike(module[::-1], tensor[::-1])
        if 1 < alike < len(module):
            best.setdefault(alike, set()).add(_rule(module, tensor, alike))
    return best[max(best)] if best else set()


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
