"""What to say of modules that have no weight in a base, and how they might be renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.suggested import rename_options, suggested_renames
from nola_edge.adapters.tensor_parts import WEIGHT
from nola_edge.adapters.whole_tensors import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from nola_edge.adapters.stored_names import StoredNames
    from nola_edge.adapters.tensor_parts import TensorPart

_LISTED = 4
_BOTH_WAYS = (
    "If the base has other names for them, give these: --rename NEW=OLD (rename= in Python; "
    "nola_edge.peft.stored_tensors(model) finds the names); or load the model from the base and "
    "save a NOLA adapter again, which records them; or merge while the model loads: "
    "nola_edge.transformers"
)


def unmatched(
    wanted: Mapping[str, TensorPart],
    whole: Iterable[str],
    tensors: Collection[str],
    names: StoredNames,
    adapter: Path,
    base: Path,
) -> MismatchError:
    """Return the refusal of modules that have no weight in a base.

    Parameters
    ----------
    wanted : mapping
        Module -> what files of its model would call its weight.
    whole : iterable of str
        Names of the tensors that the adapter has whole.
    tensors : collection of str
        Those of the base.
    names : StoredNames
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
        f"{_unused(names)}{_advice(wanted, whole, tensors, names)}",
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


def _unused(names: StoredNames) -> str:
    unused = names.renames.unused
    if not unused:
        return ""
    listed = " or ".join(repr(printable(new)) for new in unused[:_LISTED])
    return f"No module of the adapter has {listed} (--rename) in its name. "


def _advice(
    modules: Iterable[str], whole: Iterable[str], tensors: Collection[str], names: StoredNames
) -> str:
    tried = (names, names.without_record())
    found = [suggested_renames(modules, whole, tensors, which) for which in tried]
    rules = min(filter(None, found), key=len, default=None)
    if rules is None:
        return _BOTH_WAYS
    besides = " as well" if names.renames.rules.keys() - set(names.renames.unused) else ""
    return (
        f"All would have one with {rename_options(rules)}{besides}; check that these are the same "
        f"layers. {_BOTH_WAYS}"
    )
