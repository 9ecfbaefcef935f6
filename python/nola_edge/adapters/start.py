"""What a fresh adapter begins with (docs/design.md, *Start*)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

#: Modules whose names a new adapter's configuration lists.
_MAX_TARGETS = 4096


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


def unit_of_beta(out_features: Iterable[int], num_basis_b: int) -> float:
    """Return the unit of beta in which the learning rates that suit LoRA suit beta too.

    A step of Adam with rate eta moves each element of B by about eta, in LoRA as here. Here they
    move in l directions only: to first order the loss then falls by eta sqrt(l) ||gradient||
    instead of eta sqrt(r out) ||gradient||, while the step disturbs as much. The best rate lies
    between that of LoRA and sqrt(r out / l) times it. Counting beta in units of 2 sqrt(out / l), or
    1 if that is less, brings the two within a factor of two where it was measured
    (docs/training.md, *Learning rates*).

    Parameters
    ----------
    out_features : iterable of int
        Of each adapted layer; their mean counts.
    num_basis_b : int
        l.

    Returns
    -------
    float
        Two decimal digits of it; a rate is never known better.
    """
    sizes = list(out_features)
    return max(1.0, float(f"{2 * math.sqrt(sum(sizes) / len(sizes) / num_basis_b):.1e}"))


def target_names(modules: Iterable[str]) -> list[str]:
    """Return names that choose modules: their own, or their last parts, where they are many."""
    names = sorted(modules)
    if len(names) <= _MAX_TARGETS:
        return names
    return sorted({name.rpartition(".")[2] for name in names})


def check_shape(module: str, shape: object) -> None:
    """Refuse anything but a pair of positive sizes.

    Raises
    ------
    ArgumentError
    """
    if not (
        isinstance(shape, tuple | list)
        and len(shape) == 2
        and all(isinstance(n, int | np.integer) and n >= 1 for n in shape)
    ):
        raise ArgumentError(
            f"{printable(repr(shape))} is not (out_features, in_features), both positive",
            field=module,
        )
