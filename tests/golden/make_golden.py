"""Compute the known answers of docs/basis-v1.md from the slow reference.

Run from the repository's root: python -m tests.golden.make_golden
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.reference import basis as reference
from tests.reference.merge import merge

PATH = Path(__file__).with_name("basis_v1.json")
SEED = 20240607
MODULE = "model.layers.0.self_attn.q_proj"
SHAPE = (16, 64)
NUM_BASIS = 37


def coefficients(count: int) -> np.ndarray:
    """Simple, exactly representable numbers: (7 i mod 16 - 8) / 16."""
    return np.array([(7 * i % 16 - 8) / 16 for i in range(count)], np.float32)


def known_answers() -> dict[str, object]:
    """Everything that an implementation can check itself against."""
    answers: dict[str, object] = {
        "seed": SEED,
        "module": MODULE,
        "stream_a": f"{reference.stream_id(MODULE, 'A'):016x}",
        "stream_b": f"{reference.stream_id(MODULE, 'B'):016x}",
    }
    stream = reference.stream_id(MODULE, "A")
    for kind in ("rademacher", "uniform"):
        options = {"seed": SEED, "stream": stream, "basis": kind}
        rows = {
            str(i): [int(v) for v in reference.basis_matrix(i, (1, 8), **options)[0]]
            for i in (0, 1, 31, 32)
        }
        expanded = reference.expand(coefficients(NUM_BASIS), shape=SHAPE, **options)
        answers[kind] = {
            "gain": float(reference.gain(kind, NUM_BASIS)).hex(),
            "first_elements": rows,
            "expand_first": [float(v).hex() for v in expanded[0, :4]],
            "expand_sha256": hashlib.sha256(expanded.tobytes()).hexdigest(),
        }
    a = reference.expand(
        coefficients(NUM_BASIS), seed=SEED, stream=stream, shape=SHAPE, basis="rademacher"
    )
    b = reference.expand(
        coefficients(NUM_BASIS),
        seed=SEED,
        stream=reference.stream_id(MODULE, "B"),
        shape=(32, 16),
        basis="rademacher",
    )
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        merged = merge(np.ones((32, 64), dtype), b, a, 0.125)
        answers[f"merge_{np.dtype(dtype).name}_sha256"] = hashlib.sha256(
            merged.tobytes()
        ).hexdigest()
    return answers


if __name__ == "__main__":
    PATH.write_text(json.dumps(known_answers(), indent=2) + "\n")
