"""merge_ rounds once, with the reference's bits, for every dtype and instruction set."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import _core, ops
from nola_edge.errors import ArgumentError, NotFiniteError
from tests.conftest import ISAS
from tests.reference import merge as reference

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@given(
    st.integers(0, 30), st.integers(0, 150), st.integers(0, 40), st.sampled_from(DTYPES),
    st.integers(-12, 2), st.integers(0, 2**32), st.sampled_from([1, 2, 7]),
)  # fmt: skip
def test_bits_of_the_reference_on_every_isa(rows, cols, rank, dtype, exponent, entropy, threads):
    rng = np.random.default_rng(entropy)
    # Small scales make subnormal halves, and, squared, subnormal floats.
    scale = 10.0**exponent
    weight = (rng.standard_normal((rows, cols)) * scale).astype(dtype)
    b = rng.standard_normal((rows, rank)).astype(np.float32) * np.float32(scale)
    a = rng.standard_normal((rank, cols)).astype(np.float32)
    scaling = float(rng.uniform(0.1, 4))
    expected = reference.merge(weight, b, a, scaling)
    for isa in ISAS:
        _core.force_isa(isa)
        got = weight.copy()
        ne.merge_(got, b, a, scaling, num_threads=threads)
        assert got.tobytes() == expected.tobytes(), isa
        before = weight.tobytes()
        apart = ops.merged(weight, b, a, scaling, num_threads=threads)
        assert apart.tobytes() == expected.tobytes(), isa
        assert weight.tobytes() == before


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_every_half_survives_a_zero_update(isa, dtype):
    """All finite bit patterns, subnormals included; -0 becomes +0, as the formula says."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    finite = every[np.isfinite(every.astype(np.float32))].reshape(-1, 64)[:, :61].copy()
    got = finite.copy()
    ne.merge_(got, np.zeros((len(got), 3), np.float32), np.ones((3, 61), np.float32), 0.5)
    expected = finite.copy()
    expected[expected == 0] = 0
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_at_every_exponent(isa, dtype):
    """Ties and near-ties: the update lands on and beside the middle of two neighbours."""
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 61 * 64, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, 1).reshape(61, 64)
    values = np.clip(values, -6e4, 6e4) if dtype == np.float16 else values / 2
    ties = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF8000)
    for nudge in (0, 1, 0xFFFFFFFF):
        target = (ties + np.uint32(nudge)).view(np.float32)
        target = np.where(np.isfinite(target), target, 1).astype(np.float32)
        identity = np.eye(61, dtype=np.float32)
        got = np.zeros((61, 64), dtype)
        ne.merge_(got, identity, np.ascontiguousarray(target), 1.0)
        expected = reference.merge(np.zeros((61, 64), dtype), identity, target, 1.0)
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0), (12, 70), (6, 64)])
def test_non_finite_is_refused(isa, dtype, bad, place):
    weight = np.ones((13, 71), dtype)
    weight[place] = bad
    with pytest.raises(NotFiniteError):
        ne.merge_(weight, np.ones((13, 2), np.float32), np.ones((2, 71), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_nan_in_every_column_is_refused(isa, dtype):
    """Whatever the NaN's payload and whichever lane it falls in."""
    width = np.dtype(dtype).itemsize * 8
    for payload in (1, 2 ** (width - 1) - 1, 2**width - 1):
        bits = np.array([payload], f"u{width // 8}")
        if payload == 1:  # the smallest payload of a NaN of this type
            bits |= np.array([np.inf], dtype).view(bits.dtype)
        for column in range(71):
            weight = np.ones((7, 71), dtype)
            weight[3, column] = bits.view(dtype)[0]
            with pytest.raises(NotFiniteError):
                ne.merge_(weight, np.zeros((7, 1), np.float32), np.zeros((1, 71), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("which", ["lora_b", "lora_a", "scaling"])
def test_factor_that_is_not_finite_changes_nothing(isa, dtype, bits, which):
    bad = np.array([bits], np.uint32).view(np.float32)[0]
    weight = np.ones((7, 71), dtype)
    arguments = {
        "lora_b": np.ones((7, 2), np.float32),
        "lora_a": np.ones((2, 71), np.float32),
        "scaling": 1.0,
    }
    if which == "scaling":
        arguments["scaling"] = float(bad)
    else:
        arguments[which][-1, -1] = bad
    with pytest.raises(NotFiniteError):
        ne.merge_(weight, **arguments)
    assert (weight == 1).all()


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.float16, 65519.0), (ml_dtypes.bfloat16, 3.3953e38)]
)
def test_overflow_by_rounding_is_refused(isa, dtype, largest):
    b = np.ones((1, 1), np.float32)
    fits = np.zeros((1, 5), dtype)
    ne.merge_(fits, b, np.full((1, 5), largest, np.float32))
    assert np.isfinite(fits.astype(np.float32)).all()
    with pytest.raises(NotFiniteError):
        ne.merge_(
            fits * 0,
            b,
            np.full((1, 5), np.nextafter(np.float32(largest), np.inf) * 1.0003, np.float32),
        )


def test_unaligned_weight(isa):
    raw = np.zeros(13 * 71 * 2 + 1, np.uint8)
    weight = raw[1:].view(np.float16).reshape(13, 71)
    b, a = np.ones((13, 2), np.float32), np.ones((2, 71), np.float32)
    ne.merge_(weight, b, a, 0.25)
    assert (weight == 0.5).all()


def read_only():
    weight = np.zeros((3, 4), np.float32)
    weight.flags.writeable = False
    return weight


SHARED = np.zeros(100, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": np.zeros((3, 4))}, TypeError, "weight: must be float32"),
        ({"weight": np.zeros((3, 4), ">f4")}, TypeError, "weight: must be float32"),
        ({"weight": np.zeros(3, np.float32)}, ValueError, "weight: must have 2"),
        ({"weight": np.zeros((4, 3), np.float32).T}, ValueError, "weight: must have contiguous"),
        ({"weight": read_only()}, ValueError, "weight: is read-only"),
        ({"b": np.zeros((3, 3), np.float32)}, ValueError, "lora_b: must be .3, 2."),
        ({"a": np.zeros((2, 5), np.float32)}, ValueError, "lora_a: must have 4 columns"),
        ({"a": np.zeros((2, 4))}, TypeError, "lora_a: must be float32"),
        ({"a": np.zeros((4, 2), np.float32).T}, ValueError, "lora_a: must be C-contiguous"),
        (
            {"weight": SHARED[:12].reshape(3, 4), "b": SHARED[8:14].reshape(3, 2)},
            ValueError,
            "weight: overlaps",
        ),
    ],
)
def test_refusals_name_the_argument_and_change_nothing(change, error, message):
    arguments = {
        "weight": np.zeros((3, 4), np.float32),
        "b": np.ones((3, 2), np.float32),
        "a": np.ones((2, 4), np.float32),
        **change,
    }
    with pytest.raises(error, match=message):
        ne.merge_(arguments["weight"], arguments["b"], arguments["a"])
    assert not arguments["weight"].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_too_large_to_be_packed_at_once(isa, dtype):
    """Columns are packed in groups; each has the bits that it has alone."""
    rng = np.random.default_rng(5)
    rank, cols = 700, 3001
    b = rng.standard_normal((9, rank)).astype(np.float32)
    a = rng.standard_normal((rank, cols)).astype(np.float32)
    weight = rng.standard_normal((9, cols)).astype(dtype)
    whole, parts = weight.copy(), weight.copy()
    ne.merge_(whole, b, a, 0.25, num_threads=2)
    for start in range(0, cols, 100):
        part = np.ascontiguousarray(parts[:, start : start + 100])
        ne.merge_(part, b, np.ascontiguousarray(a[:, start : start + 100]), 0.25)
        parts[:, start : start + 100] = part
    assert whole.tobytes() == parts.tobytes()


@st.composite
def windows_of_matrices(draw):
    """A matrix's size, and a window of it."""
    rows, cols = draw(st.integers(1, 20)), draw(st.integers(1, 150))
    top, left = draw(st.integers(0, rows)), draw(st.integers(0, cols))
    bottom, right = draw(st.integers(top, rows)), draw(st.integers(left, cols))
    return (rows, cols), (slice(top, bottom), slice(left, right))


@given(
    windows_of_matrices(), st.integers(0, 5), st.integers(0, 20), st.sampled_from(DTYPES),
    st.integers(0, 2**32), st.sampled_from([1, 2, 7]),
)  # fmt: skip
def test_windows_are_merged_where_they_lie(place, shift, rank, dtype, entropy, threads):
    """From a window of one matrix into one of another; nothing around it changes."""
    rng = np.random.default_rng(entropy)
    shape, window = place
    source = rng.standard_normal(shape).astype(dtype)
    into = tuple(slice(part.start + shift, part.stop + shift) for part in window)
    target = rng.standard_normal((shape[0] + shift, shape[1] + shift)).astype(dtype)
    rows, cols = source[window].shape
    b = rng.standard_normal((rows, rank)).astype(np.float32)
    a = rng.standard_normal((rank, cols)).astype(np.float32)
    expected, in_place = target.copy(), source.copy()
    expected[into] = reference.merge(np.ascontiguousarray(source[window]), b, a, 0.5)
    for isa in ISAS:
        _core.force_isa(isa)
        got = target.copy()
        returned = ops.merged(source[window], b, a, 0.5, out=got[into], num_threads=threads)
        assert got.tobytes() == expected.tobytes(), isa
        assert np.shares_memory(returned, got) or not returned.size
    ne.merge_(in_place[window], b, a, 0.5)
    assert in_place[window].tobytes() == expected[into].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [ops._AT_ONCE, 1000], ids=["whole", "in pieces"])
def test_source_in_a_mapped_file_is_not_written(isa, dtype, at_once, tmp_path, monkeypatch):
    """In place, apart, and in pieces: the same bits, from memory that may not even be written."""
    monkeypatch.setattr(ops, "_AT_ONCE", at_once)
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((37, 131)).astype(dtype)
    b = rng.standard_normal((37, 9)).astype(np.float32)
    a = rng.standard_normal((9, 131)).astype(np.float32)
    weight.tofile(tmp_path / "weight")
    # One byte further in than its elements may lie, too.
    (tmp_path / "odd").write_bytes(b"x" + weight.tobytes())
    ne.merge_(weight, b, a, 0.3)
    for name, offset in (("weight", 0), ("odd", 1)):
        mapped = np.memmap(tmp_path / name, dtype, "r", offset, (37, 131))
        assert ops.merged(np.asarray(mapped), b, a, 0.3).tobytes() == weight.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_target_that_is_not_aligned(isa, dtype):
    weight = np.ones((13, 71), dtype)
    out = np.zeros(weight.nbytes + 1, np.uint8)[1:].view(dtype).reshape(13, 71)
    b, a = np.ones((13, 2), np.float32), np.ones((2, 71), np.float32)
    assert ops.merged(weight, b, a, 0.25, out=out) is out
    assert (out == 1.5).all()


def test_weight_may_be_its_own_target():
    weight = np.ones((3, 4), np.float32)
    b, a = np.ones((3, 1), np.float32), np.ones((1, 4), np.float32)
    assert ops.merged(weight, b, a, out=weight[:]) is not None
    assert (weight == 2).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((3, 5), np.float32), ValueError, "out: must be float32 .3, 4. like weight"),
        (np.zeros((3, 4), np.float16), ValueError, "out: must be float32 .3, 4. like weight"),
        (np.zeros(12, np.float32), ValueError, "out: must have 2 dimensions"),
        (np.zeros((4, 3), np.float32).T, ValueError, "out: must have contiguous rows"),
        (read_only(), ValueError, "out: is read-only"),
        ([[0.0] * 4] * 3, TypeError, "out: must be a numpy array, got list"),
        (SHARED[1:13].reshape(3, 4), ValueError, "out: overlaps weight in memory"),
        (SHARED[50:62].reshape(3, 4), ValueError, "out: overlaps a factor in memory"),
    ],
)
@pytest.mark.parametrize("at_once", [ops._AT_ONCE, 1], ids=["whole", "in pieces"])
def test_refused_targets_stay_as_they_are(out, error, message, at_once, monkeypatch):
    monkeypatch.setattr(ops, "_AT_ONCE", at_once)
    before = np.array(out).tobytes()
    weight = SHARED[:12].reshape(3, 4)
    b, a = SHARED[60:66].reshape(3, 2), np.ones((2, 4), np.float32)
    with pytest.raises(error, match=f"^{message}") as caught:
        ops.merged(weight, b, a, out=out)
    assert isinstance(caught.value, ArgumentError)
    assert np.array(out).tobytes() == before
    assert not SHARED.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_a_byte_further_apart_are_not_the_same_memory(dtype):
    """Their distance is no multiple of an element, and rounds down to that of the target's rows."""
    size = np.dtype(dtype).itemsize
    memory = np.arange(100, dtype=np.uint8)
    out, odd = (
        np.ndarray((3, 2), dtype, memory, strides=(stride, size))
        for stride in (4 * size, 4 * size + 1)
    )
    b, a = np.zeros((3, 1), np.float32), np.zeros((1, 2), np.float32)
    for weight, target in ((odd, out), (out, odd)):
        with pytest.raises(ArgumentError, match=r"^out: overlaps weight in memory"):
            ops.merged(weight, b, a, out=target)
    assert memory.tobytes() == bytes(range(100))
    expected = odd.tobytes()
    assert ops.merged(odd, b, a).tobytes() == expected
    ops.merged(odd, b, a, out=odd[:])
    assert odd.tobytes() == expected


@pytest.mark.parametrize("which", ["weight", "lora_b", "lora_a"])
def test_not_finite_apart(isa, which):
    """A factor that is not finite leaves the target as it was; a weight's elements arrive."""
    arguments = {
        "weight": np.ones((7, 71), np.float32),
        "lora_b": np.ones((7, 2), np.float32),
        "lora_a": np.ones((2, 71), np.float32),
    }
    arguments[which][-1, -1] = np.nan
    out = np.zeros((7, 71), np.float32)
    with pytest.raises(NotFiniteError, match=f"^{which}: "):
        ops.merged(**arguments, out=out)
    assert np.isnan(out[-1, -1]) if which == "weight" else not out.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [1024, 1088, 1003])
@pytest.mark.parametrize("start", [0, 1, 32])
def test_large_targets_have_the_same_bits(isa, dtype, cols, start):
    """Large ones are written past the cache, where their rows begin with a line of it."""
    rng = np.random.default_rng(6)
    rows, rank = 600, 5
    weight = rng.standard_normal((rows, cols)).astype(dtype)
    b = rng.standard_normal((rows, rank)).astype(np.float32)
    a = rng.standard_normal((rank, cols)).astype(np.float32)
    room = np.zeros(weight.nbytes + 8192, np.uint8)
    line = -room.ctypes.data % 4096 + start * weight.itemsize
    out = room[line : line + weight.nbytes].view(dtype).reshape(rows, cols)
    ops.merged(weight, b, a, 0.3, out=out, num_threads=2)
    ne.merge_(weight, b, a, 0.3)
    assert out.tobytes() == weight.tobytes()
    assert not room[:line].any()
    assert not room[line + weight.nbytes :].any()
