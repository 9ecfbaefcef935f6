"""expand gives the reference's bits: every instruction set, thread count, slice and kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import _core
from tests.conftest import ISAS
from tests.reference import basis as reference
from tests.reference.test_reference import KNOWN

seeds = st.integers(0, 2**63 - 1)
streams = st.integers(0, 2**64 - 1)
kinds = st.sampled_from(["rademacher", "uniform"])
threads = st.sampled_from([1, 2, 7])


@st.composite
def problems(draw):
    shape = (draw(st.integers(0, 70)), draw(st.integers(0, 150)))
    kind = draw(kinds)
    k = draw(st.integers(1, 70 if kind == "rademacher" else 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-42, 30))
    coefficients = (rng.standard_normal(k) * scale).astype(np.float32)
    ranges = []
    for size in shape:
        start = draw(st.integers(0, size))
        ranges.append((start, draw(st.integers(start, size))))
    options = {"seed": draw(seeds), "stream": draw(streams), "shape": shape, "basis": kind}
    return coefficients, options, ranges[0], ranges[1], draw(threads)


@given(problems())
def test_bits_of_the_reference_on_every_isa(problem):
    coefficients, options, rows, cols, count = problem
    expected = reference.expand(coefficients, **options)
    for isa in ISAS:
        _core.force_isa(isa)
        whole = ne.expand(coefficients, num_threads=count, **options)
        part = ne.expand(coefficients, rows=rows, cols=cols, num_threads=count, **options)
        assert whole.tobytes() == expected.tobytes(), isa
        assert part.tobytes() == expected[slice(*rows), slice(*cols)].tobytes(), isa


@pytest.mark.parametrize(("arguments", "words"), KNOWN)
def test_philox_known_answers(isa, arguments, words):
    """Through the shipped dispatch: the words come back as the signs of 32 bases."""
    counter, key = arguments
    assert tuple(_core.philox(counter, key)) == words
    if counter[0] >= 2**28 or counter[1] > 64 or key[1] >= 2**31:
        pytest.skip("this counter is not one of an element")
    stream, seed = counter[3] << 32 | counter[2], key[1] << 32 | key[0]
    stripe, lane = divmod(counter[0], 16)
    for which, word in enumerate(words):
        element = 64 * stripe + 16 * which + lane
        bits = 0
        for i in range(32):
            one_hot = np.eye(32, dtype=np.float32)[i]
            value = ne.expand(
                one_hot,
                seed=seed,
                stream=stream,
                shape=(1, element + 1),
                cols=(element, element + 1),
            )
            bits |= int(value[0, 0] < 0) << i
        assert bits == word


def test_every_word_of_random_counters(isa):
    """Generator words of random streams, seeds and draws, beyond the known answers."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        seed, stream = int(rng.integers(0, 2**63)), int(rng.integers(0, 2**64, dtype=np.uint64))
        draw, element = int(rng.integers(0, 5)), int(rng.integers(0, 300))
        expected = int(reference.word(np.array([element]), draw, seed, stream)[0])
        bits = 0
        for i in range(32):
            one_hot = np.zeros(32 * 5, np.float32)
            one_hot[32 * draw + i] = 1
            value = ne.expand(
                one_hot, seed=seed, stream=stream, shape=(1, 300), cols=(element, element + 1)
            )
            bits |= int(value[0, 0] < 0) << i
        assert bits == expected


def test_last_elements_of_the_largest_matrix(isa):
    """The counter reaches its last values without overflow, and nothing before is generated."""
    shape = (2**17, 2**17)
    rows, cols = (2**17 - 1, 2**17), (2**17 - 70, 2**17)
    coefficients = np.linspace(-1, 1, 33, dtype=np.float32)
    got = ne.expand(coefficients, seed=1, stream=2, shape=shape, rows=rows, cols=cols)
    elements = np.arange(2**34 - 70, 2**34)
    scaled = coefficients * reference.gain("rademacher", 33)
    acc = np.zeros(70, np.float32)
    signs = [
        np.where(reference.word(elements, i // 32, 1, 2) >> np.uint32(i % 32) & 1, -1, 1)
        for i in range(33)
    ]
    terms = [c * s.astype(np.float32) for c, s in zip(scaled, signs, strict=True)]
    terms += [np.zeros(70, np.float32)] * 3
    for i in range(0, 36, 4):
        acc = acc + ((terms[i] + terms[i + 1]) + (terms[i + 2] + terms[i + 3]))
    assert got[0].tobytes() == acc.tobytes()


def test_half_precision_coefficients_are_exact():
    import ml_dtypes

    values = np.linspace(-1, 1, 7, dtype=np.float32)
    for kind in (np.float16, ml_dtypes.bfloat16):
        half = values.astype(kind)
        options = {"seed": 1, "stream": 2, "shape": (3, 5)}
        got = ne.expand(half, **options)
        assert got.tobytes() == ne.expand(half.astype(np.float32), **options).tobytes()


def test_no_global_state():
    before = np.random.get_state()[1].tobytes()
    ne.expand(np.ones(5, np.float32), seed=1, stream=2, shape=(9, 9))
    assert np.random.get_state()[1].tobytes() == before
