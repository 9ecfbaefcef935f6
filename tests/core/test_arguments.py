"""Every argument that cannot be is refused by its name, before anything happens."""

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import _core, ops
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import ArgumentError, ArgumentTypeError, NotFiniteError

GOOD = {"coefficients": [1.0, 2.0], "seed": 1, "stream": 2, "shape": (4, 6)}


def refused(name, call):
    """One printable line that begins with the argument's name, which is also the error's field."""
    with pytest.raises(ArgumentError, match=f"^{name}: ") as caught:
        call()
    assert caught.value.field == name
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, TypeError) == isinstance(caught.value, ArgumentTypeError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coefficients", None),
        ("coefficients", [[1.0], [1.0, 2.0]]),
        ("coefficients", []),
        ("seed", 10**4000),
        ("seed", np.ones((40, 40))),
        ("basis", "\ud800"),
        ("coefficients", [None]),
        ("coefficients", ["a"]),
        ("coefficients", np.ones(3)),
        ("coefficients", np.ones((2, 2), np.float32)),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
        ("seed", True),
        ("seed", np.True_),
        ("rows", (False, True)),
        ("num_threads", True),
        ("stream", 2**64),
        ("stream", "A"),
        ("shape", (4,)),
        ("shape", 4),
        ("shape", (-1, 4)),
        ("basis", None),
        ("basis", "normal"),
        ("rows", (-1, 2)),
        ("rows", (0, 5)),
        ("cols", 3),
        ("num_threads", 0),
        ("num_threads", 1.5),
        ("shape", (2**18, 2**17)),
        ("shape", (2**62, 2**62)),
        ("cols", (3, 2)),
    ],
)
def test_expand(name, value):
    refused(name, lambda: ne.expand(**{**GOOD, name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("grad", None), ("num_basis", 0), ("num_basis", 2.0), ("seed", -1), ("shape", (1, 2, 3))],
)
def test_project(name, value):
    arguments = {"grad": np.ones((4, 6), np.float32), "seed": 1, "stream": 2, "num_basis": 3}
    refused(name, lambda: ne.project(**{**arguments, name: value}))


@pytest.mark.parametrize("name", ["weight", "lora_b", "lora_a"])
def test_merge_wants_arrays(name):
    arguments = {
        "weight": np.ones((2, 3), np.float32),
        "lora_b": np.ones((2, 1), np.float32),
        "lora_a": np.ones((1, 3), np.float32),
    }
    arguments[name] = arguments[name].tolist()
    with pytest.raises(TypeError, match=f"^{name}: must be a numpy array, got list$"):
        ne.merge_(**arguments)


@pytest.mark.parametrize("name", ["lora_b", "lora_a", "scaling"])
def test_merge_names_the_factor_that_is_not_finite(name):
    weight = np.ones((2, 3), np.float32)
    arguments = {
        "lora_b": np.ones((2, 1), np.float32),
        "lora_a": np.ones((1, 3), np.float32),
        "scaling": 1.0,
    }
    arguments[name] = arguments[name] * np.float32("nan")
    with pytest.raises(NotFiniteError, match=f"^{name}: is infinite or NaN"):
        ne.merge_(weight, **arguments)
    assert (weight == 1).all()


@pytest.mark.parametrize("shape", [(0, 4), (-4, 4), (4,), 4, (4, 2.5)])
def test_create_wants_shapes(shape):
    with pytest.raises(ArgumentError, match=r"^m: .* is not \(out_features, in_features\)"):
        ne.Adapter.create({"m": shape}, r=1, num_basis_a=1, num_basis_b=1, seed=0, lora_alpha=1.0)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("module", lambda: ne.stream_id(None, "A")),
        ("module", lambda: trained_adapter({"m": (4, 4)}).factors([], 4, 4)),
        ("module", lambda: ne.stream_id("\ud800", "A")),
        ("factor", lambda: ne.stream_id("m", "C")),
        ("factor", lambda: ne.stream_id("m", b"A")),
        ("basis", lambda: ops.gain("normal", 1)),
        ("num_basis", lambda: ops.gain("uniform", -1)),
        ("counter", lambda: ops.philox((1, 2, 3, 2**32), (0, 0))),
        ("counter", lambda: ops.philox((1, 2, 3), (0, 0))),
        ("key", lambda: ops.philox((1, 2, 3, 4), None)),
    ],
)
def test_the_other_functions(name, call):
    refused(name, call)


@pytest.mark.parametrize("method", ["factors", "factor_a", "factor_b"])
@pytest.mark.parametrize("module", ["nope", "line\nbreak", ""])
def test_a_module_that_the_adapter_does_not_have(method, module):
    """An error of this package's, and still what a mapping would raise."""
    call = getattr(trained_adapter({"m": (4, 4)}), method)
    sizes = (4, 4) if method == "factors" else (4,)
    refused("module", lambda: call(module, *sizes))
    with pytest.raises(KeyError, match="is not one of the adapter's 1 modules; "):
        call(module, *sizes)


@pytest.mark.parametrize("value", [None, "much", 10**400, [1.0, 2.0], True])
def test_scaling(value):
    weight = np.ones((2, 3), np.float32)
    b, a = np.ones((2, 1), np.float32), np.ones((1, 3), np.float32)
    refused("scaling", lambda: ne.merge_(weight, b, a, value))
    assert (weight == 1).all()


def test_an_instruction_set():
    with pytest.raises(ArgumentError, match="instruction set 'sse9'"):
        _core.force_isa("sse9")


def unaligned(array):
    """The same array at an odd address."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    copy = raw[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("at_once", [ops._AT_ONCE, 100], ids=["whole", "in pieces"])
def test_what_is_not_aligned_gives_the_same_bits(isa, kind, at_once, monkeypatch):
    monkeypatch.setattr(ops, "_AT_ONCE", at_once)
    rng = np.random.default_rng(4)
    dtype = numpy_dtype({"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[kind])
    values = rng.standard_normal(41).astype(dtype)
    options = {"seed": 1, "stream": 2}
    expected = ne.expand(values, shape=(7, 70), **options)
    got = ne.expand(unaligned(values), shape=(7, 70), **options)
    assert got.tobytes() == expected.tobytes()
    if kind == "float32":  # a buffer without a dtype
        got = ne.expand(memoryview(unaligned(values)), shape=(7, 70), **options)
        assert got.tobytes() == expected.tobytes()
    grad = expected.astype(dtype)
    expected = ne.project(grad, num_basis=5, **options)
    assert ne.project(unaligned(grad), num_basis=5, **options).tobytes() == expected.tobytes()
    b = rng.standard_normal((7, 3)).astype(np.float32)
    a = rng.standard_normal((3, 70)).astype(np.float32)
    weight, odd = grad.copy(), unaligned(grad)
    ne.merge_(weight, b, a, 0.7)
    ne.merge_(odd, unaligned(b), unaligned(a), 0.7)
    assert odd.tobytes() == weight.tobytes()


def test_an_unaligned_weight_is_refused_like_any_other():
    weight = unaligned(np.ones((2, 3), np.float32))
    b, a = np.ones((2, 1), np.float32), np.ones((1, 3), np.float32)
    refused("weight", lambda: ne.merge_(weight, weight.ravel()[:2].reshape(2, 1), a))
    refused("weight", lambda: ne.merge_(weight.T, b, a))
    weight.flags.writeable = False
    refused("weight", lambda: ne.merge_(weight, b, a))
    assert (weight == 1).all()


def test_coefficients_are_one_for_each_basis_of_the_matrix():
    matrix = ("rademacher", 1, 2, 3, (4, 4), (0, 4), (0, 4))
    refused("coefficients", lambda: _core.expand(matrix, np.ones(2, np.float32), 1))
    assert _core.expand(matrix, np.ones(3, np.float32), 1).shape == (4, 4)


def test_addresses_that_are_not_aligned_are_refused():
    room = np.zeros(64, np.float32)
    place, odd = room.ctypes.data, room.ctypes.data + 1
    matrix = ("rademacher", 1, 2, 3, (4, 4), (0, 4), (0, 4))
    merge = ("float32", (2, 2), place, place, 1, 1.0, 1)
    refused("coefficients", lambda: _core.expand_at(matrix, odd, place, 1))
    refused("out", lambda: _core.expand_at(matrix, place, odd, 1))
    refused("grad", lambda: _core.project_at(matrix, odd, place, 1))
    refused("out", lambda: _core.project_at(matrix, place, odd, 1))
    refused("weight", lambda: _core.merge_at(odd, *merge))
    refused("lora_b", lambda: _core.merge_at(place, *merge[:2], odd, *merge[3:]))
    refused("lora_a", lambda: _core.merge_at(place, *merge[:3], odd, *merge[4:]))
    refused("values", lambda: _core.scale_at(odd, 1, 2.0))
    assert not room.any()
