"""How checkpoints store stacks of experts: as they are in memory, or matrix by matrix."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.adapters.lora_files import holds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Shapes = Mapping[str, tuple[int, ...]]

#: Parameter -> the names of the matrices that an expert's part of it is made of, one below the
#: other, as transformers joins them when it loads.
_MATRICES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "gate_proj": (("gate_proj",),),
    "up_proj": (("up_proj",),),
}
#: Ends of the names of modules in memory and in older files.
_RENAMED = (("mlp.experts", "block_sparse_moe.experts"),)


@dataclass(frozen=True)
class StoredStack:
    """A stack of experts in a base.

    Attributes
    ----------
    name : str
        Of the parameter, with that of its module, by which patterns know it.
    experts : int
    shape : (rows, columns)
        Of one expert.
    parts : tuple of (module, expert, start, stop)
        Name of a stored matrix without ``.weight``, and the rows of an expert that it holds. Those
        of a stack that is one tensor are called by its name and their number.
    """

    name: str
    experts: int
    shape: tuple[int, int]
    parts: tuple[tuple[str, int, int, int], ...]


def stored_stacks(container: str, parameters: Sequence[str], shapes: Shapes) -> list[StoredStack]:
    """Return the stacks that a base stores of one module, of the parameters that are asked for.

    Parameters
    ----------
    container : str
        The module, by the adapter's name for it.
    parameters : sequence of str
        ``target_parameters``.
    shapes : mapping
        Tensor of the base -> shape.
    """
    found = []
    for parameter in sorted(parameters):
        name = parameter.rpartition(".")[2]
        if holds(container, parameter):
            near = _from_first(container, shapes)
            stack = _as_it_is(container, name, near) or _by_matrices(container, name, near)
            found += [] if stack is None else [stack]
    return found


def _from_first(container: str, shapes: Shapes) -> Shapes:
    """Return the shapes by the adapter's names, where all of the base's have or lack a prefix."""
    for name in (container, *_renamed(container)):
        parts = name.split(".")
        for count in range(max(1, len(parts) - 1)):  # "experts" alone is in every layer
            ending = ".".join(parts[count:]) + "."
            held = {n: s for n, s in shapes.items() if ("." + n).find("." + ending) >= 0}
            if held:
                return {f"{name}.{n.rpartition(ending)[2]}": s for n, s in held.items()}
    return {}


def _renamed(container: str) -> list[str]:
    return [
        container.removesuffix(name) + other for name, other in _RENAMED if container.endswith(name)
    ]


def _as_it_is(container: str, name: str, shapes: Shapes) -> StoredStack | None:
    """Return a stack that is one tensor."""
    held = [stored for stored in shapes if stored.endswith(f".{name}")]
    shape = shapes[held[0]] if len(held) == 1 else ()
    if len(shape) != 3:
        return None
    parts = tuple((f"{held[0]}.{expert}", expert, 0, shape[1]) for expert in range(shape[0]))
    return StoredStack(f"{container}.{name}", shape[0], (shape[1], shape[2]), parts)


def _by_matrices(container: str, name: str, shapes: Shapes) -> StoredStack | None:
    """Return a stack whose experts are stored matrix by matrix."""
    for names in _MATRICES.get(name, ()):
        holders = {n.rpartition(f".0.{names[0]}.weight")[0] for n in shapes} - {""}
        if len(holders) != 1:
            continue
        (holder,) = holders
        experts = 0
        while f"{holder}.{experts}.{names[0]}.weight" in shapes:
            experts += 1
        matrices = [[f"{holder}.{e}.{part}" for part in names] for e in range(experts)]
        found = {tuple(shapes.get(f"{m}.weight", ()) for m in each) for each in matrices}
        if len(found) == 1 and all(len(shape) == 2 for shape in next(iter(found))):
            return _joined(f"{container}.{name}", matrices, next(iter(found)))
    return None


def _joined(
    name: str, matrices: list[list[str]], shapes: tuple[tuple[int, ...], ...]
) -> StoredStack | None:
    if len({shape[1] for shape in shapes}) != 1:
        return None
    ends = list(itertools.accumulate(shape[0] for shape in shapes))
    parts = tuple(
        (module, expert, end - shape[0], end)
        for expert, each in enumerate(matrices)
        for module, shape, end in zip(each, shapes, ends, strict=True)
    )
    return StoredStack(name, len(matrices), (ends[-1], shapes[0][1]), parts)
