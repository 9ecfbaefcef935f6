"""Rows of ggml's blocks of 32 quantised values, and what is left in them of a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge import _core
from nola_edge.arguments import check_arrays, text, threads_or_default

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def dequantized(
    rows: NDArray[np.uint8], kind: str, *, num_threads: int | None = None
) -> NDArray[np.float32]:
    """Return the values of rows of one of ggml's quantised types.

    Parameters
    ----------
    rows : (n, bytes of a row) uint8, C-contiguous
        Whole blocks.
    kind : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Returns
    -------
    (n, elements of a row) float32

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message names it.
    """
    check_arrays(rows=rows)
    return _core.dequantize(text("kind", kind), rows, threads_or_default(num_threads))


def quantized(
    values: NDArray[np.float32], kind: str, *, num_threads: int | None = None
) -> NDArray[np.uint8]:
    """Return values as rows of one of ggml's quantised types: its reference quantiser's bytes.

    Parameters
    ----------
    values : (n, elements of a row) float32, C-contiguous
        Rows of whole blocks of 32 elements. A block with an infinite value or a NaN is read back
        as NaN, one with values too large for its type as infinite or NaN.
    kind : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Returns
    -------
    (n, bytes of a row) uint8

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message names it.
    """
    check_arrays(values=values)
    return _core.quantize(text("kind", kind), values, threads_or_default(num_threads))


def quantized_amplified(
    base: NDArray[np.float32],
    wanted: NDArray[np.float32],
    kind: str,
    *,
    num_threads: int | None = None,
) -> NDArray[np.uint8]:
    """Return values as rows of one of ggml's quantised types so that their change is kept.

    Most of a small change is less than half a step, and lost by :func:`quantized`. So the change of
    each block is amplified by 1, 1.25, 1.5, 1.75, 2, 2.5, … 28, until as much of it is there as
    should be: ``<got - base, change> >= |change|**2``. The factor that comes nearest is taken, the
    smallest of several.

    Parameters
    ----------
    base, wanted : (n, elements of a row) float32, C-contiguous
        Values before and after the change, in rows of whole blocks of 32 elements.
    kind : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Returns
    -------
    (n, bytes of a row) uint8

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message names it.
    """
    check_arrays(base=base, wanted=wanted)
    return _core.quantize_amplified(
        text("kind", kind), base, wanted, threads_or_default(num_threads)
    )


def change_sums(
    base: NDArray[np.float32], wanted: NDArray[np.float32], got: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Return ‖wanted - base‖², ⟨got - base, wanted - base⟩ and ‖got - base‖², in double.

    Parameters
    ----------
    base, wanted, got : (n, m) float32, C-contiguous

    Raises
    ------
    ArgumentError
        If an argument does not fit; the message names it.
    """
    check_arrays(base=base, wanted=wanted, got=got)
    return _core.change_sums(base, wanted, got)
