"""Merging with one rounding, and a whole adapter's update of one weight."""

from __future__ import annotations

import numpy as np

from tests.reference.basis import expand, stream_id
from tests.reference.fma import fma32

F32 = np.float32


def merge(weight, b, a, scaling):
    """Return the merged copy of a float32, float16 or bfloat16 matrix."""
    acc = np.zeros(weight.shape, F32)
    for j in range(a.shape[0]):
        acc = fma32(b[:, j : j + 1], a[j : j + 1, :], acc)
    return fma32(F32(scaling), acc, weight.astype(F32)).astype(weight.dtype)


def factors(config, module, alpha, beta, out_features, in_features):
    common = {"seed": config.seed, "basis": config.basis}
    a = expand(alpha, stream=stream_id(module, "A"), shape=(config.r, in_features), **common)
    b = expand(beta, stream=stream_id(module, "B"), shape=(out_features, config.r), **common)
    return a, b
