"""Quantised rows have the reference's bytes and values, on every instruction set."""

import importlib.util
import pickle

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nola_edge import _core
from nola_edge.errors import ArgumentError
from nola_edge.gguf import blocks
from tests.conftest import ISAS
from tests.reference import quantization as reference

F = np.float32
KINDS = list(reference.BITS)
BLOCK = reference.BLOCK
ONES = np.ones((2, BLOCK), F)


def alike(array, other):
    """Every bit but those of a NaN, of which there is one kind here."""
    return array.tobytes() == other.tobytes() or (
        array.dtype == F
        and np.array_equal(np.isnan(array), np.isnan(other))
        and array[~np.isnan(array)].tobytes() == other[~np.isnan(other)].tobytes()
    )


def check(kind, values, threads=1):
    expected = reference.quantize(kind, values)
    for isa in ISAS:
        _core.force_isa(isa)
        rows = blocks.quantized(values, kind, num_threads=threads)
        assert rows.tobytes() == expected.tobytes(), (kind, isa)
        check_values(kind, rows, threads)


def check_values(kind, rows, threads=1):
    expected = reference.dequantize(kind, rows)
    for isa in ISAS:
        _core.force_isa(isa)
        assert alike(blocks.dequantized(rows, kind, num_threads=threads), expected), (kind, isa)


#: From where the reciprocal of a scale is infinite to where fp16 overflows.
exponents = st.integers(-44, 37)


@given(
    st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 4), exponents,
    st.integers(0, 2**32), st.sampled_from([1, 2, 7]),
)  # fmt: skip
def test_random_rows(kind, rows, count, exponent, entropy, threads):
    rng = np.random.default_rng(entropy)
    values = rng.standard_normal((rows, count * BLOCK)) * 10.0**exponent
    check(kind, values.astype(F), threads)


@given(st.sampled_from(KINDS), st.integers(1, 40), exponents, st.integers(0, 2**32))
def test_few_different_values(kind, number, exponent, entropy):
    """Zeros of both signs, opposites that are equally large, blocks of one value."""
    rng = np.random.default_rng(entropy)
    values = rng.integers(-number, number + 1, (30, BLOCK)) * 10.0**exponent
    values *= rng.choice([-1.0, 1.0], values.shape)
    check(kind, values.astype(F))


@given(st.sampled_from(KINDS), st.floats(-14, 4), st.integers(0, 2**32))
def test_ties(kind, exponent, entropy):
    """Values on and beside the middle of two codes of a grid that the block itself fixes."""
    rng = np.random.default_rng(entropy)
    last = 127 if kind == "Q8_0" else (1 << reference.BITS[kind]) - 1 - reference.middle(kind)
    codes = rng.integers(-last, last + 1, (50, BLOCK)) / 2
    codes[:, :2] = -last, last
    if reference.middle(kind):
        codes[:, 0] = -reference.middle(kind)
    values = (codes * 2.0 ** round(exponent)).astype(F)
    beside = np.nextafter(values, rng.choice([-np.inf, np.inf], values.shape).astype(F))
    check(kind, np.where(rng.random(values.shape) < 0.5, values, beside))


@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_any_bits(kind, entropy):
    """Scales that are subnormal, negative, infinite or NaN, and codes that no quantiser gives."""
    rng = np.random.default_rng(entropy)
    check_values(kind, rng.integers(0, 256, (9, 7 * reference.block_bytes(kind)), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_every_scale(kind, isa):
    rows = np.zeros((1 << 16, reference.block_bytes(kind)), np.uint8)
    rows[:, :2] = np.arange(1 << 16, dtype="<u2").reshape(-1, 1).view(np.uint8)
    rows[:, 4:] = 0x5A
    assert alike(blocks.dequantized(rows, kind), reference.dequantize(kind, rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_read_back_as_nan(kind, value, isa):
    values = np.ones((3, 3 * BLOCK), F)
    values[1, 50] = value
    got = blocks.dequantized(blocks.quantized(values, kind), kind)
    assert np.isnan(got[1, BLOCK : 2 * BLOCK]).all()
    got[1, BLOCK : 2 * BLOCK] = 1
    assert got == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_values(kind, isa):
    """Blocks whose scale is too large for fp16, or their range for float32."""
    values = np.linspace(-1, 1, 6 * BLOCK, dtype=F).reshape(2, -1)
    for factor in (1e9, 3.4e38):
        large = values * F(factor)
        got = blocks.quantized(large, kind)
        assert got.tobytes() == reference.quantize(kind, large).tobytes()
        assert not np.isfinite(blocks.dequantized(got, kind)).all(axis=1).any()


@given(st.sampled_from(KINDS), exponents, st.integers(0, 2**32))
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the gguf package")
def test_the_reference_gives_the_bytes_of_the_gguf_package(kind, exponent, entropy):
    from gguf import GGMLQuantizationType, quants

    rng = np.random.default_rng(entropy)
    values = rng.standard_normal((20, 2 * BLOCK))
    values[10:] = np.round(3 * values[10:])
    values = (values * 10.0**exponent).astype(F)
    with np.errstate(all="ignore"):
        rows = quants.quantize(values, GGMLQuantizationType[kind])
        back = quants.dequantize(rows, GGMLQuantizationType[kind])
    assert reference.quantize(kind, values).tobytes() == rows.tobytes()
    assert alike(reference.dequantize(kind, rows), back)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: blocks.quantized(np.ones((2, 32), F), "Q4_K"), "kind: 'Q4_K' is not known"),
        (lambda: blocks.quantized(np.ones((2, 32)), "Q8_0"), "values: must be float32"),
        (lambda: blocks.quantized(np.ones(32, F), "Q8_0"), r"values: must have 2 dimension"),
        (lambda: blocks.quantized(np.ones((2, 33), F), "Q8_0"), "values: must have rows of whole"),
        (lambda: blocks.quantized(np.ones((64, 2), F).T, "Q8_0"), "values: must be C-contiguous"),
        (lambda: blocks.quantized([[1.0] * 32], "Q8_0"), "values: must be a numpy array"),
        (lambda: blocks.quantized_amplified(ONES, ONES, "F32"), "kind: 'F32' is not known"),
        (lambda: blocks.quantized_amplified(ONES, ONES[:1], "Q8_0"), "wanted: must be float32"),
        (lambda: blocks.quantized_amplified(ONES[:, :30], ONES, "Q8_0"), "base: must be C-cont"),
        (lambda: blocks.dequantized(np.ones((2, 34), F), "Q8_0"), "rows: must be uint8"),
        (lambda: blocks.dequantized(np.ones((2, 35), np.uint8), "Q8_0"), "rows: must have rows of"),
        (lambda: blocks.dequantized(np.ones(34, np.uint8), "Q8_0"), "rows: must have 2 dimensions"),
        (lambda: blocks.dequantized(np.ones((34, 2), np.uint8).T, "Q8_0"), "rows: must be C-cont"),
        (
            lambda: blocks.dequantized(np.ones((2, 34), np.uint8), None),
            "kind: None is not a string",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_unaligned_values_are_copied():
    memory = np.empty(4 * 64 + 1, np.uint8)[1:].view(F).reshape(2, 32)
    memory[...] = np.arange(64).reshape(2, 32)
    assert not memory.flags.aligned
    expected = reference.quantize("Q5_1", memory.copy())
    assert blocks.quantized(memory, "Q5_1").tobytes() == expected.tobytes()


@given(
    st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 3), st.floats(-8, 1), exponents,
    st.integers(0, 2**32), st.sampled_from([1, 3]),
)  # fmt: skip
def test_amplified_changes(kind, rows, count, size, exponent, entropy, threads):
    """Of bases on the grid and off it, by changes from too small ones to very large ones."""
    rng = np.random.default_rng(entropy)
    shape = rows, count * BLOCK
    base = (rng.standard_normal(shape) * 10.0**exponent).astype(F)
    if entropy % 2:
        base = reference.dequantize(kind, reference.quantize(kind, base))
    change = rng.standard_normal(shape) * 10.0 ** (exponent + size)
    with np.errstate(over="ignore"):
        wanted = (base + change * (rng.random(shape) < 0.8)).astype(F)
    assume(np.isfinite(base).all() and np.isfinite(wanted).all())
    expected = reference.quantize_amplified(kind, base, wanted)
    for isa in ISAS:
        _core.force_isa(isa)
        rows = blocks.quantized_amplified(base, wanted, kind, num_threads=threads)
        assert rows.tobytes() == expected.tobytes(), (kind, isa)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.05, 0.1])
def test_an_amplified_change_is_there(kind, size, isa):
    """Where to the nearest codes most of it is lost; the cost is noise."""
    rng = np.random.default_rng(1)
    base = blocks.dequantized(blocks.quantized(rng.standard_normal((64, 256), F), kind), kind)
    step = 2.0 * np.abs(base).max() / (1 << reference.BITS[kind])
    wanted = base + F(size * step) * rng.standard_normal(base.shape, F)
    parts = {}
    for rows in (blocks.quantized(wanted, kind), blocks.quantized_amplified(base, wanted, kind)):
        change, common, _ = blocks.change_sums(base, wanted, blocks.dequantized(rows, kind))
        parts[len(parts)] = common / change
    assert parts[0] < 0.8
    assert parts[1] == pytest.approx(1, abs=0.1)


def test_what_changes_nothing_is_quantised_as_ever(isa):
    values = np.random.default_rng(1).standard_normal((3, 64), F)
    for kind in KINDS:
        rows = blocks.quantized_amplified(values, values, kind)
        assert rows.tobytes() == blocks.quantized(values, kind).tobytes()


@given(st.integers(0, 6), st.integers(0, 70), st.integers(-30, 18), st.integers(0, 2**32))
def test_sums_of_changes(rows, cols, exponent, entropy):
    rng = np.random.default_rng(entropy)
    shape = rows, cols
    base, wanted, got = ((rng.standard_normal(shape) * 10.0**exponent).astype(F) for _ in range(3))
    expected = reference.change_sums(base, wanted, got)
    for isa in ISAS:
        _core.force_isa(isa)
        assert list(blocks.change_sums(base, wanted, got)) == expected, isa


def test_sums_of_changes_tell_what_is_not_finite(isa):
    base, wanted, got = (np.ones((3, 40), F) for _ in range(3))
    for value in (np.inf, -np.inf, np.nan):
        got[1, 7] = value
        assert not np.isfinite(blocks.change_sums(base, wanted, got)[2])
    with pytest.raises(ArgumentError, match="got: must be float32"):
        blocks.change_sums(base, wanted, np.ones((3, 41), F))


def test_arrays_whose_dtype_is_another_object_are_taken(isa):
    """As that of an array is which was pickled."""
    values = pickle.loads(pickle.dumps(np.ones((2, 32), F), protocol=5))
    expected = reference.quantize("Q8_0", values)
    assert blocks.quantized(values, "Q8_0").tobytes() == expected.tobytes()
