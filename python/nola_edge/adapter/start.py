"""The coefficients that a fresh adapter begins with (design section 2, *Initial coefficients*)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit_start(num_basis: int, in_features: int) -> NDArray[np.float32]:
    """Return alpha = (sqrt(k / (3 in)), 0, ..., 0), so that A begins as one random matrix.

    Its variance is that of Kaiming-uniform(a = sqrt 5), 1 / (3 in).

    Parameters
    ----------
    num_basis : int
        k.
    in_features : int
        Of the layer.

    Returns
    -------
    (k,) float32
    """
    alpha = np.zeros(num_basis, np.float32)
    alpha[0] = math.sqrt(num_basis / (3 * in_features))
    return alpha
