"""Match an adapter's module names to a checkpoint's tensor names.

Streams follow from the adapter's own names, so matching never renames anything: it only finds
which stored tensor is the weight of which module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.whole_tensors import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

WEIGHT = ".weight"
_LISTED = 4


def match_modules(
    modules: Sequence[str], tensors: Collection[str], *, adapter: Path, base: Path
) -> dict[str, str]:
    """Find the weight tensor of every module.

    Names match exactly, or all of them after one and the same prefix is added
    (``layers.0.q`` -> ``model.layers.0.q.weight``) or removed (``bert.encoder.x`` ->
    ``encoder.x.weight``), provided that a single prefix does.

    Parameters
    ----------
    modules : sequence of str
        Module names of the adapter.
    tensors : collection of str
        Tensor names of the base checkpoint.
    adapter, base : Path
        Named in errors.

    Returns
    -------
    dict
        Module name -> tensor name, in the order of `modules`.

    Raises
    ------
    MismatchError
        If a module has no weight in the base, or several prefixes would do.
    """
    if all(module + WEIGHT in tensors for module in modules):
        return {module: module + WEIGHT for module in modules}
    added = _prefixes_to_add(modules, tensors)
    removed = _prefixes_to_remove(modules, tensors)
    if len(added) + len(removed) == 1:
        if added:
            return {module: added[0] + module + WEIGHT for module in modules}
        return {module: module[len(removed[0]) :] + WEIGHT for module in modules}
    if added or removed:
        choices = [f"adding {printable(p)!r}" for p in added]
        choices += [f"removing {printable(p)!r}" for p in removed]
        raise MismatchError(
            f"module names of {printable(str(adapter))} match this base in more than one way: "
            f"{', '.join(choices[:_LISTED])}; rename the base's tensors or pick one model part",
            file=base,
        )
    raise _unmatched(modules, tensors, adapter, base)


def _prefixes_to_add(modules: Sequence[str], tensors: Collection[str]) -> list[str]:
    ending = "." + modules[0] + WEIGHT
    found = [name[: 1 - len(ending)] for name in tensors if name.endswith(ending)]
    return [p for p in found if all(p + module + WEIGHT in tensors for module in modules)]


def _prefixes_to_remove(modules: Sequence[str], tensors: Collection[str]) -> list[str]:
    parts = modules[0].split(".")
    prefixes = [".".join(parts[:count]) + "." for count in range(1, len(parts))]
    return [
        p
        for p in prefixes
        if all(module.startswith(p) and module[len(p) :] + WEIGHT in tensors for module in modules)
    ]


def _unmatched(
    modules: Sequence[str], tensors: Collection[str], adapter: Path, base: Path
) -> MismatchError:
    import difflib

    missing = [module for module in modules if module + WEIGHT not in tensors]
    tied = [module for module in missing if (module + WEIGHT).endswith(OUTPUT_EMBEDDINGS)]
    embeddings = [name for name in tensors if name.endswith(INPUT_EMBEDDINGS)]
    if tied and embeddings and not any(name.endswith(OUTPUT_EMBEDDINGS) for name in tensors):
        return MismatchError(
            f"has no weight of its own here, but shares {printable(embeddings[0])!r} "
            f"(tie_word_embeddings), and {printable(str(adapter))} changes the output alone; save "
            f"the base untied ({printable(tied[0])}{WEIGHT} as a tensor of its own, "
            "tie_word_embeddings=False) and merge into that",
            file=base,
            field=tied[0],
        )
    first = missing[0]
    weights = [name for name in tensors if name.endswith(WEIGHT)]
    last = first.rsplit(".", 1)[-1] + WEIGHT
    near = difflib.get_close_matches(first + WEIGHT, weights, n=_LISTED, cutoff=0.5)
    near = near or [name for name in weights if name.endswith(last)][:_LISTED]
    hint = (
        "nearest tensors: " + ", ".join(printable(name) for name in near)
        if near
        else f"the base has {len(weights)} weights and none with a similar name"
    )
    return MismatchError(
        f"{len(missing)} of {len(modules)} modules of {printable(str(adapter))} have no weight "
        f"here, the first is {printable(first)!r}; {hint}. Where a library renames what it loads, "
        "as for many vision models, merge while it loads: nola_edge.transformers",
        file=base,
        field=first,
    )
