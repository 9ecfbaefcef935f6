"""The functions of nola.h have the bits of the Python package, and refuse what they cannot do."""

from __future__ import annotations

import hashlib
import json
import math
import re
from ctypes import byref, c_char_p, c_uint64

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.gguf import blocks
from tests.c_interface.library import (
    BASES,
    BLOCKS,
    INVALID_ARGUMENT,
    NOT_FINITE,
    OK,
    Matrix,
    Update,
    expand,
    place,
    stream_of,
    update_of,
    weight_of,
    whole,
)
from tests.golden.make_golden import MODULE, NUM_BASIS, PATH, SEED, SHAPE, coefficients

GOLDEN = json.loads(PATH.read_text())
F = np.float32
MOST = 2**64 - 1


def factor(library, name, rows, cols, basis="rademacher"):
    stream = stream_of(library, MODULE, name)
    matrix = whole(rows, cols, seed=SEED, stream=stream, num_basis=NUM_BASIS, basis=BASES[basis])
    return expand(library, matrix, coefficients(NUM_BASIS))


def sets(library):
    """Force each instruction set that can run here, by name."""
    for name in ne.build_info()["supported_isas"]:
        assert library.nola_force_isa(name.encode()) == OK
        found = c_char_p()
        assert library.nola_isa(byref(found)) == OK
        assert found.value == name.encode()
        yield name


def test_the_known_answers(library):
    """On every instruction set: those of docs/basis-v1.md."""
    assert f"{stream_of(library, MODULE, 'A'):016x}" == GOLDEN["stream_a"]
    for _ in sets(library):
        for basis in BASES:
            got = factor(library, "A", *SHAPE, basis)
            assert hashlib.sha256(got.tobytes()).hexdigest() == GOLDEN[basis]["expand_sha256"]
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            weight = np.ones((32, 64), dtype)
            update = update_of(factor(library, "B", 32, 16), factor(library, "A", *SHAPE), 0.125)
            assert library.nola_merge(weight_of(weight, weight), update, 2) == OK
            digest = hashlib.sha256(weight.tobytes()).hexdigest()
            assert digest == GOLDEN[f"merge_{np.dtype(dtype).name}_sha256"]


@given(data=st.data())
def test_windows_and_gradients(library, data):
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 150))
    begin = data.draw(st.integers(0, rows)), data.draw(st.integers(0, cols))
    end = data.draw(st.integers(begin[0], rows)), data.draw(st.integers(begin[1], cols))
    count, basis = data.draw(st.integers(1, 70)), data.draw(st.sampled_from(list(BASES)))
    seed, stream = data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, MOST))
    rng = np.random.default_rng(count)
    values = rng.standard_normal(count).astype(F)
    matrix = Matrix(
        seed, stream, count, rows, cols, begin[0], end[0], begin[1], end[1], BASES[basis]
    )
    window = {"rows": (begin[0], end[0]), "cols": (begin[1], end[1])}
    source = {"seed": seed, "stream": stream, "basis": basis}
    wanted = ne.expand(values, shape=(rows, cols), **source, **window)
    assert expand(library, matrix, values, 3).tobytes() == wanted.tobytes()
    grad = rng.standard_normal(wanted.shape).astype(F)
    got = np.empty(count, F)
    assert library.nola_project(matrix, place(grad), place(got), 2) == OK
    expected = ne.project(grad, shape=(rows, cols), num_basis=count, **source, **window)
    assert got.tobytes() == expected.tobytes()


def test_blocks(library):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, 64)).astype(F)
    wanted = base + 0.01 * rng.standard_normal(base.shape).astype(F)
    count = base.size // 32
    for name, kind in BLOCKS.items():
        rows, amplified, back = blocks.quantized(wanted, name), None, np.empty_like(wanted)
        amplified = blocks.quantized_amplified(base, wanted, name)
        got = np.empty_like(rows)
        assert library.nola_quantize(kind, place(wanted), count, place(got), 1) == OK
        assert got.tobytes() == rows.tobytes()
        assert library.nola_dequantize(kind, place(rows), count, place(back), 1) == OK
        assert back.tobytes() == blocks.dequantized(rows, name).tobytes()
        status = library.nola_quantize_amplified(
            kind, place(base), place(wanted), count, place(got), 1
        )
        assert status == OK
        assert got.tobytes() == amplified.tobytes()


def test_scale(library):
    values = np.linspace(-1, 1, 11, dtype=F)
    expected = ne.ops.scaled(values, 0.1)
    assert library.nola_scale(place(values), len(values), 0.1) == OK
    assert values.tobytes() == expected.tobytes()


def test_nothing_is_written_where_a_factor_is_not_finite(library):
    base, out = np.ones((2, 3), F), np.full((2, 3), 7, F)
    for scaling, value in ((1.0, math.nan), (math.inf, 1.0)):
        b, a = np.full((2, 1), value, F), np.ones((1, 3), F)
        assert library.nola_merge(weight_of(base, out), update_of(b, a, scaling), 1) == NOT_FINITE
        assert (out == 7).all()
    b = np.full((2, 1), 3e38, F)
    assert library.nola_merge(weight_of(base, out), update_of(b, np.ones((1, 3), F), 2.0), 1) == (
        NOT_FINITE
    )
    assert library.nola_last_error().startswith(b"weight: ")
    assert np.isinf(out).all()


ARRAY = np.zeros(64, F)
AT = place(ARRAY)
SMALL = {"num_basis": 2, "rows": 2, "cols": 3, "row_end": 2, "col_end": 3}


def matrix(**fields):
    return Matrix(**SMALL | fields)


def merged(weight=(), update=()):
    """Return the arguments of a merge, with fields changed."""
    place_of = weight_of(np.zeros((2, 4), F), np.zeros((2, 4), F))
    place_of.base = place_of.out = AT
    for name, value in weight:
        setattr(place_of, name, value)
    change = Update(AT, AT, 1, 1.0)
    for name, value in update:
        setattr(change, name, value)
    return place_of, change, 1


REFUSED = [
    ("nola_force_isa", (None,), "name: null"),
    ("nola_force_isa", (b"sse",), "'sse'"),
    ("nola_isa", (None,), "name: null"),
    ("nola_stream_id", (None, 65, byref(c_uint64())), "module: null"),
    ("nola_stream_id", (b"m", 67, byref(c_uint64())), "factor: 67 is neither"),
    ("nola_stream_id", (b"m", 65, None), "stream: null"),
    ("nola_expand", (None, AT, AT, 1), "matrix: null"),
    ("nola_expand", (matrix(), None, AT, 1), "coefficients: null"),
    ("nola_expand", (matrix(), AT, None, 1), "out: null"),
    ("nola_expand", (matrix(), AT + 1, AT, 1), "coefficients: is not aligned"),
    ("nola_expand", (matrix(basis=2), AT, AT, 1), r"basis: 2 is not in 0\.\.1"),
    ("nola_expand", (matrix(basis=-1), AT, AT, 1), r"basis: -1 is not in 0\.\.1"),
    ("nola_expand", (matrix(seed=2**63), AT, AT, 1), "seed: must be below"),
    ("nola_expand", (matrix(num_basis=0), AT, AT, 1), "num_basis: 0 is not in"),
    ("nola_expand", (matrix(num_basis=MOST), AT, AT, 1), "num_basis: .* is not in"),
    ("nola_expand", (matrix(rows=MOST), AT, AT, 1), "more than 2.34 elements"),
    ("nola_expand", (matrix(row_end=3), AT, AT, 1), "rows: "),
    ("nola_expand", (matrix(col_begin=4), AT, AT, 1), "cols: "),
    ("nola_project", (None, AT, AT, 1), "matrix: null"),
    ("nola_project", (matrix(), None, AT, 1), "grad: null"),
    ("nola_project", (matrix(), AT, None, 1), "out: null"),
    ("nola_merge", (None, Update(), 1), "weight: null"),
    ("nola_merge", (merged()[0], None, 1), "update: null"),
    ("nola_merge", merged([("base", None)]), "base: null"),
    ("nola_merge", merged([("out", None)]), "out: null"),
    ("nola_merge", merged([("type", 3)]), r"type: 3 is not in 0\.\.2"),
    ("nola_merge", merged([("base_stride", 3)]), "base: has a stride of less"),
    ("nola_merge", merged([("rows", 2**62)]), "weight: .* more than can be in memory"),
    ("nola_merge", merged([("out_stride", MOST)]), "weight: .* more than can be in memory"),
    ("nola_merge", merged([("out", AT + 8)]), "out: overlaps base"),
    ("nola_merge", merged([], [("rank", 2**62)]), "b: .* more than can be in memory"),
    ("nola_merge", merged([], [("b", None)]), "a factor is null"),
    ("nola_scale", (None, 4, 1.0), "values: null"),
    ("nola_scale", (AT, MOST, 1.0), "count: .* more than can be in memory"),
    ("nola_quantize", (5, AT, 1, AT, 1), r"type: 5 is not in 0\.\.4"),
    ("nola_quantize", (0, None, 1, AT, 1), "values: null"),
    ("nola_quantize", (0, AT, 1, None, 1), "blocks: null"),
    ("nola_quantize", (0, AT, 2**60, AT, 1), "count: .* more than can be in memory"),
    ("nola_dequantize", (0, None, 1, AT, 1), "blocks: null"),
    ("nola_dequantize", (0, AT, MOST, AT, 1), "count: .* more than can be in memory"),
    ("nola_quantize_amplified", (0, None, AT, 1, AT, 1), "null"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED)
def test_what_is_refused(library, function, arguments, message):
    """Nothing is written, and one line says which argument it was."""
    before = ARRAY.tobytes()
    assert getattr(library, function)(*arguments) == INVALID_ARGUMENT
    error = library.nola_last_error().decode()
    assert re.search(message, error), error
    assert error.isprintable()
    assert ARRAY.tobytes() == before


def test_nothing_to_do_needs_no_memory(library):
    assert library.nola_expand(matrix(row_end=0), AT, None, 1) == OK
    assert library.nola_scale(None, 0, 1.0) == OK
    assert library.nola_quantize(0, None, 0, None, 1) == OK
    assert library.nola_merge(*merged([("rows", 0), ("base", None), ("out", None)])) == OK
