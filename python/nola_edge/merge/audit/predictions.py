"""What mistakes would have made of a window of a weight, rounded as a merge rounds."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nola_edge import ops
from nola_edge.errors import NotFiniteError
from nola_edge.merge.audit import faults
from nola_edge.merge.audit.block import change_in, change_of
from nola_edge.merge.low_rank import needs_of
from nola_edge.merge.windows import ANY, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nola_edge.merge.audit.block import Block, Floats
    from nola_edge.merge.low_rank import LowRank
    from nola_edge.merge.merged import Merged

    Prediction = tuple[str, Floats]
    Rounding = Callable[[Floats], Floats]

#: Adapters in one weight up to which every pair of them is tried …
_MOST_SWAPPED = 8
#: … every choice of some of them …
_MOST_CHOSEN = 6
#: … and every order.
_MOST_ORDERED = 4


def usual(result: Merged, block: Block, window: Window, update: LowRank) -> Iterator[Prediction]:
    """Yield what a right merge gives for a window, and what the usual mistakes do.

    Parameters
    ----------
    result : Merged
        What the weight should be.
    block : Block
        The window as it was found.
    window : Window
    update : LowRank
        For the window's columns.
    """
    terms = result.terms
    if update.needs != ANY:
        product = change_of(update.left(*window.rows), update.right, update.scaling)
        yield from _scalings(block)
        yield from _of_dora(block, product)
        return
    alone = [update]
    if len(terms) > 1:
        alone = [replace(result, terms=(term,)).update(window.cols, 1) for term in terms]
    yield from _scalings(block)
    mistake = faults.rslora_mistake(terms)
    if mistake is not None:
        change = _mistaken(block, mistake, alone, window.rows)
        yield from _multiples(block, mistake.fault, 1.0, change)
    yield from _twice_rounded(block, alone, window.rows)


def rarer(
    result: Merged, block: Block, window: Window, factor: float, other: Merged | None
) -> Iterator[Prediction]:
    """Yield what rarer mistakes give for a window.

    Parameters
    ----------
    result : Merged
        What the weight should be.
    block : Block
        The window as it was found.
    window : Window
    factor : float
        What the change was multiplied by, as far as can be told; else NaN.
    other : Merged, optional
        The weight whose change is most like the one that was found.
    """
    if math.isfinite(factor):
        yield from _multiples(block, faults.SCALED, factor, block.change)
    if result.dtype == "BF16":
        yield faults.TRUNCATED, _truncated(block.base + block.change)
    if needs_of(result.terms) != ANY:
        return
    if len(result.terms) > 1:
        yield from _of_some(result, block, window)
        if result.dtype == "F32":  # others hardly show it
            yield from _in_other_orders(result, block, window)
    if result.shape[0] == result.shape[1]:
        across = change_in(result, Window(window.cols, window.rows)).T
        yield faults.TRANSPOSED, block.rounded(block.base + across)
    if any(term.target.head_rows is not None for term in result.terms):
        change = change_in(_in_order(result), window)
        yield faults.ROW_ORDER, block.rounded(block.base + change)
    layout = _in_other_layout(result)
    if layout is not None:
        yield faults.EXPERT_LAYOUT, block.rounded(block.base + change_in(layout, window))
    if other is not None:
        yield faults.ANOTHER_LAYER, block.rounded(block.base + change_in(other, window))


def _truncated(values: Floats) -> Floats:
    """Return values as a program leaves them that takes the upper half of their bits for BF16."""
    upper: Floats = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return upper


def _of_some(result: Merged, block: Block, window: Window) -> Iterator[Prediction]:
    """Yield what a window is where adapters were left out, or two have each other's weights."""
    terms = result.terms
    if len({term.adapter.path or id(term.adapter) for term in terms}) == 1:
        return  # that of one adapter, given several times, is a scaling of it
    changes = [change_in(replace(result, terms=(term,)), window) for term in terms]
    for dropped in _choices(len(terms)):
        values = block.rounded(block.base + _without(block.change, changes, dropped))
        yield faults.key_of_some(faults.ADAPTER_DROPPED, dropped), values
    if len(terms) > _MOST_SWAPPED:
        return
    for pair in itertools.combinations(range(len(terms)), 2):
        (one, other), weights = pair, [terms[number].weight for number in pair]
        if weights[0] != weights[1] and all(weights):
            more = np.float32(weights[1] / weights[0] - 1) * changes[one]
            more += np.float32(weights[0] / weights[1] - 1) * changes[other]
            values = block.rounded(block.base + (block.change + more))
            yield faults.key_of_some(faults.WEIGHTS_SWAPPED, pair), values


def _choices(count: int) -> Iterator[tuple[int, ...]]:
    """Yield which of some adapters may be left out: of many, one.

    All choices or none of several: whoever adds next to nothing is not to be named because the
    choice that leaves the others out is not there to compare with.
    """
    for size in range(1, count if count <= _MOST_CHOSEN else 2):
        yield from itertools.combinations(range(count), size)


def _without(change: Floats, changes: Sequence[Floats], dropped: Sequence[int]) -> Floats:
    """Return a change without some of those that it is the sum of.

    Those that are left are summed, if they are few: a difference would be less exact.
    """
    kept = [number for number in range(len(changes)) if number not in dropped]
    few = kept if len(kept) <= _MOST_CHOSEN else dropped
    total: Floats = np.add.reduce([changes[number] for number in few])
    return total if few is kept else change - total


def _in_other_orders(result: Merged, block: Block, window: Window) -> Iterator[Prediction]:
    """Yield what a window is where the adapters are summed in another order."""
    update = result.update(window.cols, 1)
    left = update.left(*window.rows)
    ends = np.cumsum([term.rank for term in result.terms])
    ranks = np.split(np.arange(len(update.right)), ends[:-1])
    backwards = range(len(ranks) - 1, -1, -1)
    orders = itertools.permutations(range(len(ranks)))
    next(orders)  # the right one
    for order in orders if len(ranks) <= _MOST_ORDERED else [backwards]:
        these = np.concatenate([ranks[number] for number in order])
        values = block.base.copy()
        with contextlib.suppress(NotFiniteError):  # such elements count nowhere
            right = np.ascontiguousarray(update.right[these])
            ops.merge_(values, np.ascontiguousarray(left[:, these]), right, 1.0, num_threads=1)
        yield faults.key_of_some(faults.ADAPTER_ORDER, order), values


def _in_order(result: Merged) -> Merged:
    """Return what a merge would be that takes the rows to be in the model's order."""
    terms = (replace(t, target=t.target._replace(head_rows=None)) for t in result.terms)
    return replace(result, terms=tuple(terms))


def _in_other_layout(result: Merged) -> Merged | None:
    """Return what a merge would be that takes stacks of experts to be laid out otherwise."""
    if all(term.adapter.other_layout is None for term in result.terms):
        return None
    terms = (replace(t, adapter=t.adapter.other_layout or t.adapter) for t in result.terms)
    return replace(result, terms=tuple(terms))


def _mistaken(
    block: Block,
    mistake: faults.ScalingMistake,
    updates: Sequence[LowRank],
    rows: tuple[int, int],
) -> Floats:
    """Return the change of a window with its scaling mistaken, from the update of each term."""
    if mistake.part is not None:
        return np.float32(mistake.part) * block.change
    change = np.zeros_like(block.change)
    for part, update in zip(mistake.parts, updates, strict=True):
        change += np.float32(part) * change_of(update.left(*rows), update.right, update.scaling)
    return change


def _scalings(block: Block) -> Iterator[Prediction]:
    """Yield what a right merge gives for a window, and what mistakes in its scaling do."""
    yield faults.ROUNDING, block.right
    yield f"{faults.MERGED_TWICE}: one after the other", block.rounded(block.right + block.change)
    for name, part in faults.PARTS.items():
        yield from _multiples(block, name, part, block.change)


def _multiples(block: Block, name: str, part: float, change: Floats) -> Iterator[Prediction]:
    """Yield what some multiple of a change gives for a window, and what a bit less and more do.

    Where the change is small, many elements agree whatever the multiple is; whether it is the best
    shows in its neighbours.
    """
    step = faults.STEP * (abs(part) or 1)
    less, more = (sign + name for sign in faults.BESIDE)
    for key, factor in ((name, part), (less, part - step), (more, part + step)):
        yield key, block.rounded(block.base + np.float32(factor) * change)


def _twice_rounded(
    block: Block, updates: Sequence[LowRank], rows: tuple[int, int]
) -> Iterator[Prediction]:
    """Yield what merges give for a window that round more than the result.

    The sum of all changes, or, of one adapter after the other: nothing else, the change, the
    product before its scaling, or the factors too.

    Parameters
    ----------
    block : Block
    updates : sequence of LowRank
        Of each adapter alone.
    rows : (start, stop)
        Of the window.
    """
    factors = [(update.left(*rows), update.right, update.scaling) for update in updates]
    if len(updates) > 1:
        one_by_one = _one_after_the_other(block.base, factors, change_of, block.rounded)
        yield f"{faults.ROUNDED_TWICE}: nothing else", one_by_one
    for number, half in enumerate(block.intermediate):
        yield (
            f"{faults.ROUNDED_TWICE}: sum {number}",
            block.rounded(block.base + half(block.change)),
        )
        for name, way in _ways(half).items():
            weight = _one_after_the_other(block.base, factors, way, half)
            yield f"{faults.ROUNDED_TWICE}: {name} {number}", block.rounded(weight)


def _ways(half: Rounding) -> dict[str, Callable[[Floats, Floats, float], Floats]]:
    """Return how a program makes the change of an adapter that rounds on the way."""
    return {
        "weight": change_of,
        "change": lambda *given: half(change_of(*given)),
        "product": lambda b, a, s: half(np.float32(s) * half(change_of(b, a, 1.0))),
        "factors": lambda b, a, s: half(np.float32(s) * half(change_of(half(b), half(a), 1.0))),
    }


def _one_after_the_other(
    weight: Floats,
    factors: Sequence[tuple[Floats, Floats, float]],
    way: Callable[[Floats, Floats, float], Floats],
    rounded: Rounding,
) -> Floats:
    for given in factors:
        weight = rounded(weight + way(*given))
    return weight


def _of_dora(block: Block, product: Floats) -> Iterator[Prediction]:
    """Yield what is merged twice rounded, and what is without magnitudes, for a window."""
    yield faults.ROUNDED_TWICE, block.rounded(block.base + block.rounded(block.change))
    yield faults.DORA_OFF, block.rounded(block.base + product)
