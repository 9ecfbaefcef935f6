"""LoRA of stacks of experts: parameters of three axes, (experts, rows, columns).

PEFT's ``target_parameters`` saves two matrices for a stack: A (experts * r, x) and B (y, experts *
r), under the name of the module that holds it, or below ``base_layer`` once more for each further
stack of the same module. A is expert after expert. In B, PEFT has the columns of all experts side
by side for each rank; Unsloth had those of one expert together, until September 2026, and has
written since which it is (``lora_B_layout``). Nothing says which stack a pair belongs to, and which
of its axes x is: shapes do, together with the base.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from nola_edge.adapters.expert_storage import stored_stacks
from nola_edge.adapters.lora_files import LoraModule, container_of
from nola_edge.adapters.matrix_parts import PartOfStack, Recent, Rows, Turned
from nola_edge.adapters.patterns import PatternTable
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.adapters.expert_storage import StoredStack
    from nola_edge.adapters.lora_config import LoraConfig
    from nola_edge.adapters.matrix_parts import WindowedMatrix

#: Stacks whose B is kept by experts: those of a layer, which files may hold in turn.
_KEPT = 3


def expert_modules(
    stacks: Mapping[str, LoraModule],
    config: LoraConfig,
    shapes: Mapping[str, tuple[int, ...]],
    adapter: Path,
    base: Path,
) -> dict[str, LoraModule]:
    """Return module -> factors, for the matrices of all experts in a base.

    Parameters
    ----------
    stacks : mapping
        PEFT's name for each, with ``base_layer`` -> factors.
    config : LoraConfig
    shapes : mapping
        Tensor of the base -> shape.
    adapter, base : Path
        Named in errors.

    Raises
    ------
    MismatchError
        If the base stores no such stacks, or it is not certain which is whose.
    """
    containers: dict[str, dict[str, LoraModule]] = {}
    for module, factors in stacks.items():
        container = str(container_of(module, config.target_parameters))
        containers.setdefault(container, {})[module] = factors
    recent = Recent(_KEPT)
    found: dict[str, LoraModule] = {}
    for container, pairs in containers.items():
        candidates = stored_stacks(container, config.target_parameters, shapes)
        ways = list(_assignments(list(pairs.values()), candidates, config))
        if len(ways) != 1:
            raise _refusal(container, pairs, candidates, len(ways), adapter, base)
        turned, stored = ways[0]
        for factors, stack in zip(pairs.values(), stored, strict=True):
            found.update(_modules(factors, stack, config, turned, recent))
    return found


def kept_bytes(stacks: Mapping[str, LoraModule]) -> int:
    """Return the most bytes that modules of experts keep of their factors."""
    return _KEPT * 4 * max(factors.b.shape[0] * factors.b.shape[1] for factors in stacks.values())


def _assignments(
    pairs: list[LoraModule], stacks: Sequence[StoredStack], config: LoraConfig
) -> Iterator[tuple[bool, tuple[StoredStack, ...]]]:
    """Yield whether axes are turned, and a stack for each pair, wherever all fit."""
    ranks = PatternTable(config.rank_pattern, config.r)
    for turned in (False, True):
        for chosen in itertools.permutations(stacks, len(pairs)):
            fit = [
                (factors.a.shape, factors.b.shape) == _shapes(stack, ranks[stack.name], turned)
                for factors, stack in zip(pairs, chosen, strict=True)
            ]
            if all(fit):
                yield turned, chosen


def _shapes(stack: StoredStack, rank: int, turned: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes that A and B of a stack must have."""
    rows, cols = stack.shape[::-1] if turned else stack.shape
    return (stack.experts * rank, cols), (rows, stack.experts * rank)


def _modules(
    factors: LoraModule, stack: StoredStack, config: LoraConfig, turned: bool, recent: Recent
) -> Iterator[tuple[str, LoraModule]]:
    rank = PatternTable(config.rank_pattern, config.r)[stack.name]
    alpha = PatternTable(config.alpha_pattern, config.lora_alpha)[stack.name]

    def columns() -> NDArray[np.float32]:
        return recent.get(id(factors), lambda: _by_experts(factors.b, stack, config.expert_layout))

    for module, expert, start, stop in stack.parts:
        a: WindowedMatrix = Rows(factors.a, expert * rank, (expert + 1) * rank)
        b: WindowedMatrix = PartOfStack(columns, expert, (factors.b.shape[0], rank))
        if turned:
            a, b = Turned(b), Turned(a)
        yield module, LoraModule(a, Rows(b, start, stop), config.scaling(rank, alpha))


def _by_experts(b: WindowedMatrix, stack: StoredStack, layout: str) -> NDArray[np.float32]:
    """Return B (y, experts * r) by experts, (experts, y, r)."""
    values, height, rank = b.window(None, None), b.shape[0], b.shape[1] // stack.experts
    if layout == "rank_major":
        return values.reshape(height, rank, stack.experts).transpose(2, 0, 1).copy()
    return values.reshape(height, stack.experts, rank).transpose(1, 0, 2).copy()


def _refusal(
    container: str,
    pairs: Mapping[str, LoraModule],
    stacks: Sequence[StoredStack],
    ways: int,
    adapter: Path,
    base: Path,
) -> MismatchError:
    had = ", ".join(f"{p.a.shape[1]} to {p.b.shape[0]}" for p in pairs.values())
    if not stacks:
        what = "has no stack of experts under known names here"
    elif ways:
        what = (
            f"fits the factors of {printable(str(adapter))} in {ways} ways, so it is unclear "
            "which is meant"
        )
    else:
        sizes = ", ".join(f"{s.experts} x {s.shape[0]} x {s.shape[1]}" for s in stacks)
        what = (
            f"has stacks of {sizes} here, which the factors of {printable(str(adapter))} do not fit"
        )
    return MismatchError(
        f"{what} (target_parameters, {had}); merge it with the program that trained it",
        file=base,
        field=container,
    )
