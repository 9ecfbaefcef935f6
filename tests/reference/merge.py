"""Merging with one rounding, and the factors of NOLA's coefficients."""

from __future__ import annotations

from nola_edge.testing.reference import merge
from tests.reference.basis import expand, stream_id

__all__ = ["factors", "merge"]


def factors(config, module, alpha, beta, out_features, in_features):
    common = {"seed": config.seed, "basis": config.basis}
    a = expand(alpha, stream=stream_id(module, "A"), shape=(config.r, in_features), **common)
    b = expand(beta, stream=stream_id(module, "B"), shape=(out_features, config.r), **common)
    return a, b
