"""The ``lora_alpha`` that says a scaling to every program that divides it by r.

Some programs do not read ``use_rslora``, and so a LoRA is written without it: its alpha is s r,
where s is the scaling that the adapter was trained with, whatever the rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def alpha_of(scaling: float, r: int, dtype: type[np.floating[Any]] = np.float64) -> float:
    """Return the alpha whose quotient by r is nearest to a scaling.

    Where s r would need one binary digit more than it has, s is the quotient of no alpha; that of
    the one returned is then the last bit away, and for float64 still the same in float32.

    Parameters
    ----------
    scaling : float
        s, the factor of B A; within the range of `dtype`, as s r is.
    r : int
        Rank, exact in `dtype`.
    dtype : type
        What the alpha is stored in and divided by r in: ``numpy.float64`` or ``numpy.float32``.

    Returns
    -------
    float
        A number of that dtype, the shortest to write that will do.
    """
    wanted, rank, product = dtype(scaling), dtype(r), dtype(scaling * r)
    neighbours = [product, *(np.nextafter(product, dtype(end)) for end in (-np.inf, np.inf))]

    def badness(alpha: np.floating[Any]) -> tuple[bool, float, int]:
        quotient = alpha / rank
        differs = np.float32(quotient) != np.float32(scaling)
        return bool(differs), float(abs(quotient - wanted)), len(str(alpha))

    with np.errstate(over="ignore"):  # beyond float32 all are the same there
        return float(min(neighbours, key=badness))
