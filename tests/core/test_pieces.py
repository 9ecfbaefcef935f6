"""Long work is cut into pieces; the bits are those of one call, and it can be stopped."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import ops, pacing
from nola_edge.errors import NotFiniteError

SHAPE = (70, 300)


def slices(size):
    pair = st.tuples(st.integers(0, size), st.integers(0, size))
    return pair.map(lambda ends: (min(ends), max(ends)))


@given(
    st.sampled_from(["rademacher", "uniform"]),
    slices(SHAPE[0]),
    slices(SHAPE[1]),
    st.integers(1, 60),
    st.sampled_from([1, 1000, 30_000]),
)
def test_expand(basis, rows, cols, num_basis, at_once):
    coefficients = np.random.default_rng(num_basis).standard_normal(num_basis).astype("f")
    options = {"seed": 3, "stream": 4, "shape": SHAPE, "basis": basis, "rows": rows, "cols": cols}
    whole = ne.expand(coefficients, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_AT_ONCE", at_once)
        pieces = ne.expand(coefficients, **options)
    assert pieces.shape == whole.shape
    assert pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merge(isa, monkeypatch, dtype):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((50, 90)).astype(dtype)
    b, a = rng.standard_normal((50, 8)).astype("f"), rng.standard_normal((8, 90)).astype("f")
    whole, pieces = weight.copy(), weight.copy()
    ne.merge_(whole, b, a, 0.3)
    monkeypatch.setattr(ops, "_AT_ONCE", 90 * 8 * 3)
    ne.merge_(pieces, b, a, 0.3)
    assert pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize("place", ["b", "a", "weight"])
def test_what_is_not_finite_is_refused_as_ever(monkeypatch, place):
    arrays = {"weight": np.ones((9, 5), "f"), "b": np.ones((9, 2), "f"), "a": np.ones((2, 5), "f")}
    arrays[place][-1, -1] = np.inf
    before = arrays["weight"].copy()
    monkeypatch.setattr(ops, "_AT_ONCE", 10)
    with pytest.raises(NotFiniteError):
        ne.merge_(arrays["weight"], arrays["b"], arrays["a"])
    if place != "weight":
        assert arrays["weight"].tobytes() == before.tobytes()


def test_arguments_are_checked_before_any_piece(monkeypatch):
    monkeypatch.setattr(ops, "_AT_ONCE", 1)
    good = {"seed": 1, "stream": 2, "shape": (4, 6)}
    for name, value in (("basis", "normal"), ("rows", (2, 5)), ("cols", (5, 3)), ("seed", -1)):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            ne.expand([1.0, 2.0], **{**good, name: value})
    weight = np.zeros((4, 6), "f")
    with pytest.raises(ValueError, match=r"^lora_b: "):
        ne.merge_(weight, np.zeros((3, 2), "f"), np.zeros((2, 6), "f"))
    with pytest.raises(ValueError, match=r"^weight: overlaps"):
        ne.merge_(weight[2:], np.zeros((2, 1), "f"), weight[2:3])


def test_others_stop_a_thread_between_two_pieces():
    event = threading.Event()
    with pacing.stopped_by(event.is_set):
        pieces = pacing.paced(0, 100, 3)
        assert next(pieces) == (0, 3)
        event.set()
        with pytest.raises(pacing.Interrupted):
            next(pieces)
    assert list(pacing.paced(0, 5, 9)) == [(0, 5)]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9), st.integers(1, 9))
def test_pieces_follow_one_another(start, length, first, step):
    pieces = list(pacing.paced(start, start + length, first, step))
    assert [p for begin, end in pieces for p in range(begin, end)] == list(
        range(start, start + length)
    )
    assert all((end - begin) % step == 0 for begin, end in pieces[:-1])
