"""project is the adjoint of expand, with the same bits on every instruction set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import _core
from tests.conftest import ISAS
from tests.core.test_expand import kinds, seeds, streams
from tests.reference import basis as reference


@given(
    st.integers(0, 40), st.integers(0, 150), st.integers(1, 70), kinds, seeds, streams,
    st.integers(0, 2**32),
)  # fmt: skip
def test_against_the_reference(rows, cols, k, kind, seed, stream, entropy):
    grad = np.random.default_rng(entropy).standard_normal((rows, cols)).astype(np.float32)
    options = {"seed": seed, "stream": stream, "basis": kind}
    expected = reference.project(grad, min(k, 9 if kind == "uniform" else k), **options)
    k = len(expected)
    results = set()
    for isa in ISAS:
        _core.force_isa(isa)
        for count in (1, 2, 7):
            got = ne.project(grad, num_basis=k, num_threads=count, **options)
            results.add(got.tobytes())
    assert len(results) == 1
    tolerance = 1e-5 * (np.abs(grad).sum() + 1e-30) * (1.8 if kind == "uniform" else 1) / k**0.5
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=tolerance)


@given(st.integers(1, 60), st.integers(1, 150), st.data(), kinds)
def test_a_slice_is_a_gradient_that_is_zero_elsewhere(rows, cols, data, kind):
    r0, c0 = data.draw(st.integers(0, rows)), data.draw(st.integers(0, cols))
    r1, c1 = data.draw(st.integers(r0, rows)), data.draw(st.integers(c0, cols))
    grad = np.random.default_rng(1).standard_normal((rows, cols)).astype(np.float32)
    options = {"seed": 3, "stream": 4, "num_basis": 20, "basis": kind}
    got = ne.project(
        np.ascontiguousarray(grad[r0:r1, c0:c1]),
        shape=(rows, cols),
        rows=(r0, r1),
        cols=(c0, c1),
        **options,
    )
    masked = np.zeros_like(grad)
    masked[r0:r1, c0:c1] = grad[r0:r1, c0:c1]
    np.testing.assert_allclose(got, ne.project(masked, **options), rtol=1e-4, atol=2e-3)


def test_large_gradients_over_many_chunks(isa):
    grad = np.random.default_rng(2).standard_normal((600, 515)).astype(np.float32)
    coefficients = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    for kind in ("rademacher", "uniform"):
        options = {"seed": 5, "stream": 6, "basis": kind}
        got = [
            ne.project(grad, num_basis=40, num_threads=n, **options).tobytes() for n in (1, 2, 7)
        ]
        assert len(set(got)) == 1
        matrix = ne.expand(coefficients, shape=grad.shape, **options).astype(np.float64)
        inner = float(np.frombuffer(got[0], np.float32).astype(np.float64) @ coefficients)
        assert abs(inner - (matrix * grad).sum()) < 1e-3 * np.linalg.norm(matrix)
