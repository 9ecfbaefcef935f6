"""Every argument that cannot be is refused by its name, before anything happens."""

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import ArgumentError, NotFiniteError

GOOD = {"coefficients": [1.0, 2.0], "seed": 1, "stream": 2, "shape": (4, 6)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coefficients", None),
        ("coefficients", [None]),
        ("coefficients", ["a"]),
        ("coefficients", np.ones(3)),
        ("coefficients", np.ones((2, 2), np.float32)),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
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
    with pytest.raises((TypeError, ValueError), match=f"^{name}: [^\n]*$"):
        ne.expand(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("grad", None), ("num_basis", 0), ("num_basis", 2.0), ("seed", -1), ("shape", (1, 2, 3))],
)
def test_project(name, value):
    arguments = {"grad": np.ones((4, 6), np.float32), "seed": 1, "stream": 2, "num_basis": 3}
    with pytest.raises((TypeError, ValueError), match=f"^{name}: [^\n]*$"):
        ne.project(**{**arguments, name: value})


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
