"""Match an adapter's module names to a checkpoint's tensor names.

Streams follow from the adapter's own names, so matching never renames anything: it only finds
which stored tensor is the weight of which module.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import OTHERWISE, WEIGHT, TensorPart, overlapping
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

_LISTED = 4


class Prefix(NamedTuple):
    """What all names of an adapter's model have before a base's names, or lack.

    Attributes
    ----------
    removed, added : str
    """

    removed: str = ""
    added: str = ""

    @classmethod
    def of(cls, wanted: str, found: str) -> Prefix:
        """Return what turns the one name into the other, which ends alike."""
        if len(found) >= len(wanted):
            return cls(added=found[: len(found) - len(wanted)])
        return cls(removed=wanted[: len(wanted) - len(found)])

    def apply(self, name: str) -> str:
        """Return the base's name of what would have this name."""
        return self.added + name.removeprefix(self.removed)

    def apply_to(self, parts: Mapping[str, TensorPart]) -> dict[str, TensorPart]:
        """Return parts of the tensors that have the base's names of these."""
        if self == Prefix():
            return dict(parts)
        return {n: TensorPart(self.apply(p.tensor), p.lines) for n, p in parts.items()}


class Matches(NamedTuple):
    """Where a base has what an adapter changes.

    Attributes
    ----------
    parts : dict
        Module -> the part of a stored tensor that is its weight, in the adapter's order.
    whole : dict
        Name of a tensor that the adapter has whole -> its part of the base, which may lack it.
    names : StoredNames
        What found them.
    prefix : Prefix
    """

    parts: dict[str, TensorPart]
    whole: dict[str, TensorPart]
    names: StoredNames
    prefix: Prefix


def match_modules(
    modules: Sequence[str], tensors: Collection[str], *, adapter: Path, base: Path
) -> dict[str, str]:
    """Find the weight of every module by its own name; see :func:`match_parts`.

    Returns
    -------
    dict
        Module name -> tensor name, in the order of `modules`.
    """
    names = StoredNames({})
    matches = match_parts(modules, tensors, names, adapter=adapter, base=base)
    return {module: part.tensor for module, part in matches.parts.items()}


def match_parts(
    modules: Sequence[str],
    tensors: Collection[str],
    names: StoredNames,
    whole: Iterable[str] = (),
    *,
    adapter: Path,
    base: Path,
) -> Matches:
    """Find the stored weight of every module.

    They have the recorded names, or else their own. Names match exactly, or all of them after one
    and the same prefix is added (``layers.0.q.weight`` -> ``model.layers.0.q.weight``) or removed
    (``bert.encoder.x.weight`` -> ``encoder.x.weight``), provided that a single prefix does.

    Parameters
    ----------
    modules : sequence of str
        Module names of the adapter.
    tensors : collection of str
        Tensor names of the base checkpoint.
    names : StoredNames
        What the base's files would call them.
    whole : iterable of str
        Names of the tensors that the adapter has whole.
    adapter, base : Path
        Named in errors.

    Raises
    ------
    MismatchError
        If a module has no weight in the base, several prefixes would do, or two modules are the
        same part of a tensor; if a module or a whole tensor is recorded as no part of one tensor.
    """
    wanted = {module: names.module(module, tensors) for module in modules}
    others = {name: names.tensor(name) for name in whole}
    _check_stored(wanted, "modules", "have their weights", adapter, base)
    _check_stored(others, "whole tensors", "are", adapter, base)
    prefix = _prefix([part.tensor for part in wanted.values()], tensors, adapter, base)
    if prefix is None and names.has_record:
        with contextlib.suppress(MismatchError):
            plain = names.without_record()
            return match_parts(modules, tensors, plain, whole, adapter=adapter, base=base)
    if prefix is None:
        from nola_edge.adapters.unmatched import unmatched

        raise unmatched(wanted, others, tensors, names, adapter, base)
    parts = prefix.apply_to(wanted)
    pair = overlapping(parts)
    if pair is not None:
        raise MismatchError(
            f"would be the weight of both {printable(pair[0])} and {printable(pair[1])} of "
            f"{printable(str(adapter))}; say which of its outputs belong to each: --rename "
            "NEW=OLD[START:STOP]",
            file=base,
            field=parts[pair[0]].tensor,
        )
    return Matches(parts, prefix.apply_to(others), names, prefix)


def _check_stored(
    parts: Mapping[str, TensorPart], kind: str, are: str, adapter: Path, base: Path
) -> None:
    """Refuse what an adapter records as no part of one tensor."""
    names = [name for name, part in parts.items() if part == OTHERWISE]
    if names:
        raise MismatchError(
            f"{len(names)} {kind} of {printable(str(adapter))}, the first is "
            f"{printable(names[0])!r}, {are} in several tensors of such a base, or with rows in "
            "another order, as the adapter records; merge in memory (PEFT's merge_and_unload), or "
            "while it loads: nola_edge.transformers",
            file=base,
            field=names[0],
        )


def _prefix(
    wanted: Sequence[str], tensors: Collection[str], adapter: Path, base: Path
) -> Prefix | None:
    if all(name in tensors for name in wanted):
        return Prefix()
    found = [Prefix(added=p) for p in _prefixes_to_add(wanted, tensors)]
    found += [Prefix(removed=p) for p in _prefixes_to_remove(wanted, tensors)]
    if len(found) > 1:
        choices = [
            f"adding {printable(p.added)!r}" if p.added else f"removing {printable(p.removed)!r}"
            for p in found[:_LISTED]
        ]
        raise MismatchError(
            f"module names of {printable(str(adapter))} match this base in more than one way: "
            f"{', '.join(choices)}; say which is meant (--rename NEW=OLD), rename the base's "
            "tensors, or pick one model part",
            file=base,
        )
    return found[0] if found else None


def _prefixes_to_add(wanted: Sequence[str], tensors: Collection[str]) -> list[str]:
    ending = "." + wanted[0]
    found = [name[: 1 - len(ending)] for name in tensors if name.endswith(ending)]
    return [p for p in found if all(p + name in tensors for name in wanted)]


def _prefixes_to_remove(wanted: Sequence[str], tensors: Collection[str]) -> list[str]:
    parts = wanted[0].removesuffix(WEIGHT).split(".")
    prefixes = [".".join(parts[:count]) + "." for count in range(1, len(parts))]
    return [
        p
        for p in prefixes
        if all(name.startswith(p) and name[len(p) :] in tensors for name in wanted)
    ]
