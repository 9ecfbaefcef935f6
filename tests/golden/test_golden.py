"""The known answers: the file, the document, the reference and every kernel set agree."""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import nola_edge as ne
from tests.golden.make_golden import (
    MODULE,
    NUM_BASIS,
    PATH,
    SEED,
    SHAPE,
    coefficients,
    known_answers,
)

GOLDEN = json.loads(PATH.read_text())
DOCUMENT = Path(__file__).parents[2] / "docs" / "basis-v1.md"


def test_the_reference_still_gives_them():
    assert known_answers() == GOLDEN


def test_the_document_states_them():
    text = DOCUMENT.read_text()
    for kind in ("rademacher", "uniform"):
        assert GOLDEN[kind]["expand_sha256"] in text
        assert GOLDEN[kind]["gain"] in text
        for row in GOLDEN[kind]["first_elements"].values():
            assert ", ".join(map(str, row)) in text
    for key in ("stream_a", "stream_b", "merge_float32_sha256", "merge_bfloat16_sha256"):
        assert GOLDEN[key] in text


def expand(factor, shape, kind):
    return ne.expand(
        coefficients(NUM_BASIS),
        seed=SEED,
        stream=ne.stream_id(MODULE, factor),
        shape=shape,
        basis=kind,
    )


@pytest.mark.parametrize("kind", ["rademacher", "uniform"])
def test_expand(isa, kind):
    got = expand("A", SHAPE, kind)
    assert hashlib.sha256(got.tobytes()).hexdigest() == GOLDEN[kind]["expand_sha256"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merge(isa, dtype):
    weight = np.ones((32, 64), dtype)
    ne.merge_(weight, expand("B", (32, 16), "rademacher"), expand("A", SHAPE, "rademacher"), 0.125)
    digest = hashlib.sha256(weight.tobytes()).hexdigest()
    assert digest == GOLDEN[f"merge_{np.dtype(dtype).name}_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rademacher", "uniform"])
def test_the_basis_is_white(kind):
    """Mean, variance, and correlation of bases, neighbours, factors and seeds, at 5 sigma."""
    shape, k = (256, 512), 8
    count = shape[0] * shape[1]

    def matrix(i, seed=1, module="m", factor="A"):
        one_hot = np.eye(k, dtype=np.float32)[i]
        stream = ne.stream_id(module, factor)
        values = ne.expand(one_hot, seed=seed, stream=stream, shape=shape, basis=kind)
        return values.astype(np.float64) * np.sqrt(k)

    reference = matrix(0)
    bound = 5 / np.sqrt(count)
    assert abs(reference.mean()) < bound
    assert abs(reference.var() - 1) < 2 * bound
    others = [matrix(i) for i in range(1, k)]
    others += [matrix(0, seed=2), matrix(0, module="n"), matrix(0, factor="B")]
    others += [np.roll(reference, shift, axis) for shift in (1, 16, 64) for axis in (0, 1)]
    for other in others:
        assert abs((reference * other).mean()) < bound
