"""Factors made of coefficients and random matrices that are drawn again, and never held.

The numbers are those of the public code but for the order of its one sum: torch leaves it to a
library that promises none. Here the terms, exact in double, are added in double, basis by basis,
and the sum is rounded once to float32, so that the result is the same on every machine and closer
to the exact sum than any order of float32 additions. With 16-bit coefficients each step is rounded
to their dtype where torch rounds it: the basis, its gain, the sum, the frozen weight's addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.adapters.public_nola.uniform import rounded
from nola_edge.errors import NotFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.contents import Factor
    from nola_edge.adapters.public_nola.devices import DrawnOn


def draw_factors(
    factors: Sequence[Factor], drawn_on: DrawnOn, advance: Callable[[int], None]
) -> list[NDArray[np.float32]]:
    """Return the A, (r, in_features), or B, (outputs, r), of factors of one ``basis``: float32.

    Parameters
    ----------
    factors : sequence of Factor
    drawn_on : DrawnOn
    advance : callable
        Called with the number of elements drawn since the last call.

    Raises
    ------
    NotFiniteError
        If an element is too large for the dtype.
    """
    first = factors[0]
    generator = drawn_on.generator(first.seed)
    generator.skip(first.before)
    coefficients = np.stack([f.coefficients.astype(np.float64) for f in factors])
    sums = np.zeros((len(factors), first.size))
    gain = np.float32(first.gain)
    blocks = generator.uniform(first.drawn, first.bound, first.dtype)
    for values, basis, begin in _by_basis(blocks, first.size):
        scaled = values if gain == 1 else rounded(values * gain, first.dtype)
        sums[:, begin : begin + values.size] += coefficients[:, basis, None] * scaled
        advance(values.size)
    return [_finished(factor, total) for factor, total in zip(factors, sums, strict=True)]


def _by_basis(
    blocks: Iterator[NDArray[np.float32]], size: int
) -> Iterator[tuple[NDArray[np.float32], int, int]]:
    """Cut blocks where a random matrix ends; yield values, its index, element index."""
    position = 0
    for block in blocks:
        start = 0
        while start < block.size:
            basis, begin = divmod(position, size)
            piece = block[start : start + size - begin]
            yield piece, basis, begin
            start += piece.size
            position += piece.size


def _finished(factor: Factor, total: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # said below, and better
        matrix = rounded(total, factor.dtype).reshape(factor.shape)
        if factor.weight is not None:
            weight = factor.weight.array().astype(np.float32)
            matrix = rounded(matrix + weight, factor.dtype)
    if not np.isfinite(matrix).all():
        raise NotFiniteError(f"is too large for {factor.dtype}", field=factor.name)
    return np.ascontiguousarray(matrix.T) if factor.transposed else matrix
