"""The slow judge of factors."""

import numpy as np

from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.dtypes import numpy_dtype
from tests.adapters.public_nola.checkpoints import F


def slow_factor(factor, drawn_on):
    """Return a factor by its definition: all random matrices at once, and one sum in order."""
    generator = DrawnOn.parse(drawn_on).generator(factor.seed)
    generator.skip(factor.before)
    basis = np.concatenate(list(generator.uniform(factor.drawn, factor.bound, factor.dtype)))
    basis = basis.reshape(factor.num_basis, *factor.shape)
    kind = numpy_dtype(factor.dtype)
    total = np.zeros(factor.shape)
    for coefficient, matrix in zip(factor.coefficients.astype(float), basis, strict=True):
        total += coefficient * (matrix * F(factor.gain)).astype(kind).astype(float)
    found = total.astype(F).astype(kind).astype(F)
    if factor.weight is not None:
        found = (found + factor.weight.array().astype(F)).astype(kind).astype(F)
    return found.T if factor.transposed else found
