"""Mistakes with some of several adapters: whose they are is said, or nothing of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.cli.verdict import Verdict
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.merge.audit.faults import HARMLESS
from tests.cli.in_process import call
from tests.conftest import load_all, write_safetensors

F = np.float32
SHAPES = {"l.0.q": (64, 64), "l.1.q": (64, 64), "l.0.up": (96, 64)}
NAMES = [f"{module}.weight" for module in SHAPES]
DTYPES = ["BF16", "F16", "F32"]
#: Weights by which a change is hardly there.
FEW = 64


def change_of(adapter, module):
    a, b = adapter.factors(module, *SHAPES[module])
    return b @ a * F(adapter.scaling)


class Several:
    """A base, adapters with weights, and what each of them adds at weight 1."""

    def __init__(self, folder, dtype, weights, seed=3, only=None):
        self.folder, self.kind = folder, numpy_dtype(dtype)
        rng = np.random.default_rng(seed)
        self.base = {
            f"{module}.weight": rng.standard_normal(shape).astype(F).astype(self.kind)
            for module, shape in SHAPES.items()
        }
        write_safetensors(folder / "base.safetensors", self.base)
        self.given, self.changes = [], []
        for number, weight in enumerate(weights):
            shapes = (only or {}).get(number, SHAPES)
            adapter = trained_adapter(shapes, r=5, num_basis=12, seed=seed + number)
            adapter.save(folder / f"a{number}", force=True)
            self.given.append((folder / f"a{number}", weight))
            self.changes.append({f"{m}.weight": change_of(adapter, m) for m in shapes})

    def written(self, weights, step=lambda values: values):
        """Write what a program makes that gives adapters these weights, and verify it."""
        tensors = {}
        for name, values in self.base.items():
            change = sum(
                F(weight) * step(found[name])
                for weight, found in zip(weights, self.changes, strict=True)
                if name in found
            )
            tensors[name] = (values.astype(F) + change).astype(self.kind)
        write_safetensors(self.folder / "out.safetensors", tensors)
        return ne.verify_checkpoint(
            self.folder / "out.safetensors",
            self.folder / "base.safetensors",
            self.given,
            tensors_only=True,
        )


def found_in(report):
    """Return tensor -> fault and the names of the adapters it is about."""
    return {
        d.tensor: (d.fault, *(path.rpartition("/")[2] for path in d.adapters))
        for d in report.differences
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("weights", "used", "wanted"),
    [
        ((1, 1), (1, 0), ("adapter dropped", "a1")),
        ((1, 1), (0, 1), ("adapter dropped", "a0")),
        ((0.7, -0.4), (0.7, 0), ("adapter dropped", "a1")),
        ((1, 0.5, 0.8), (1, 0.5, 0), ("adapter dropped", "a2")),
        ((1, 0.5), (0.5, 1), ("weights swapped", "a0", "a1")),
        ((1, 0.5, 0.8), (0, 0.5, 0), ("adapter dropped", "a0", "a2")),
        ((1, 0.5, 0.8, -0.7), (1, 0, 0, 0), ("adapter dropped", "a1", "a2", "a3")),
        ((1, 0.5, 0.8, -0.7), (0, 0.5, 0, -0.7), ("adapter dropped", "a0", "a2")),
        ((1, 0.5, 1e-10), (1, 0, 0), ("adapter dropped", "a1")),
        ((1, 1, 1e-10), (0.6, 0.6, 0), ("scaled",)),
        ((1, -1), (-1, 1), ("subtracted", "a0", "a1")),
        ((1, 0.5, 0.8), (0.8, 0.5, 1), ("weights swapped", "a0", "a2")),
        ((1, 0.5), (0, 0), ("dropped",)),
        ((1, 0.5), (0.6, 0.3), ("scaled",)),
        ((1, 0.5), (0.5, 0.45), ("unknown",)),
    ],
)
def test_a_planted_mistake_is_named_with_its_adapters(tmp_path, dtype, weights, used, wanted):
    report = Several(tmp_path, dtype, weights).written(used)
    assert found_in(report) == dict.fromkeys(NAMES, wanted)
    assert not report.within(10)


def test_a_program_that_rounds_on_the_way(tmp_path):
    case = Several(tmp_path, "BF16", (1, 0.5))
    half = lambda change: change.astype(case.kind).astype(F)  # noqa: E731
    for used, wanted in (
        ((1, 0), ("adapter dropped", "a1")),
        ((0.5, 1), ("weights swapped", "a0", "a1")),
    ):
        assert found_in(case.written(used, half)) == dict.fromkeys(NAMES, wanted)
    assert all(d.harmless for d in case.written((1, 0.5), half).differences)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_that_is_alone_in_its_layers(tmp_path, dtype):
    """There all of the change was dropped, which is not what happened to the other adapter."""
    only = {1: {"l.1.q": (64, 64), "l.0.up": (96, 64)}, 0: {"l.0.q": (64, 64), "l.0.up": (96, 64)}}
    case = Several(tmp_path, dtype, (1, 0.5), only=only)
    wanted = ("adapter dropped", "a1")
    assert found_in(case.written((1, 0))) == {"l.1.q.weight": wanted, "l.0.up.weight": wanted}
    assert found_in(case.written((0, 0))) == {
        "l.0.q.weight": ("adapter dropped", "a0"),
        "l.1.q.weight": wanted,
        "l.0.up.weight": ("dropped",),
    }


def test_adapters_that_are_alike_are_not_told_apart(tmp_path):
    case = Several(tmp_path, "F32", (0.5, 0.5))
    case.given[1] = case.given[0]
    case.changes[1] = case.changes[0]
    assert found_in(case.written((0.5, 0))) == dict.fromkeys(NAMES, ("scaled",))


def test_of_one_adapter_given_twice_the_weight_says_which(tmp_path):
    case = Several(tmp_path, "F32", (1, 0.5, 0.25))
    case.given[2] = (case.given[1][0], 0.25)
    case.changes[2] = case.changes[1]
    assert found_in(case.written((1, 0.5, 0))) == dict.fromkeys(
        NAMES, ("adapter dropped", "a1=0.25")
    )


def test_many_adapters(tmp_path):
    """Pairs of more than a few are not tried; one that was dropped is found all the same."""
    case = Several(tmp_path, "F32", [1 + n / 8 for n in range(10)])
    used = [weight for _, weight in case.given]
    used[7] = 0
    assert found_in(case.written(used)) == dict.fromkeys(NAMES, ("adapter dropped", "a7"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_that_is_alone_of_six(tmp_path, dtype):
    case = Several(tmp_path, dtype, [1 + n / 8 for n in range(6)])
    others = [f"a{number}" for number in range(6) if number != 4]
    report = case.written([weight if n == 4 else 0 for n, (_, weight) in enumerate(case.given)])
    assert found_in(report) == dict.fromkeys(NAMES, ("adapter dropped", *others))


def in_order(case, order):
    """Merge the adapters in an order, and verify that against the one in which they are given."""
    base, out = case.folder / "base.safetensors", case.folder / "ordered.safetensors"
    ne.merge_checkpoint(base, [case.given[number] for number in order], out, force=True)
    return ne.verify_checkpoint(out, base, case.given, tensors_only=True)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_adapters_in_another_order(tmp_path, count):
    """Which shows in F32, and is no mistake; nor is it imprecise."""
    case = Several(tmp_path, "F32", [1, 0.5, 0.8, -0.7, 0.3, 1.1][:count])
    orders = [(*range(1, count), 0), tuple(reversed(range(count)))]
    for order in orders[count > 4 :]:
        report = in_order(case, order)
        assert found_in(report) == dict.fromkeys(NAMES, ("adapter order",))
        assert report.within(max(d.ulps for d in report.differences))
        assert Verdict(report, count).text == (
            "right, but the adapters were summed in another order"
        )
    assert in_order(case, range(count))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_another_order_in_half_precision_is_a_rounding(tmp_path, dtype):
    report = in_order(Several(tmp_path, dtype, [1, 0.5, 0.8]), (2, 0, 1))
    assert {fault for fault, *_ in found_in(report).values()} <= {"rounding"}
    assert report.within(1)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_mistake_is_taken_for_another(tmp_path_factory, data):
    """Whatever the sizes are: it is named rightly, or not at all."""
    size = 10 ** data.draw(st.floats(-2.5, 0.5))
    weights = [size * data.draw(st.sampled_from([-1, 0.25, 0.5, 1, 1.3])) for _ in range(2)]
    case = Several(
        tmp_path_factory.mktemp("any"),
        data.draw(st.sampled_from(DTYPES)),
        weights,
        data.draw(st.integers(0, 99)),
    )
    one, other = weights
    used, wanted = data.draw(
        st.sampled_from([
            ((one, 0), ("adapter dropped", "a1")),
            ((0, other), ("adapter dropped", "a0")),
            ((other, one), ("weights swapped", "a0", "a1")),
            ((0.6 * one, 0.6 * other), ("scaled",)),
            ((0.7 * one, 0.3 * other), ("unknown",)),
        ])
    )  # fmt: skip
    harmless = [("rounding",), ("rounded twice",), ("adapter order",), ("imprecise",)]
    allowed = {wanted, ("unknown",), *harmless}
    if one == -other:
        allowed.add(("subtracted", "a0", "a1"))
    found = found_in(case.written(used))
    there = load_all(case.folder / "out.safetensors")
    gone = {name for name in found if np.array_equal(there[name], case.base[name])}
    assert {found[name] for name in found if name not in gone} <= allowed
    assert {found[name] for name in gone} <= {("dropped",), *harmless}


def test_who_is_not_in_every_layer_is_named_once(tmp_path, monkeypatch):
    """With all layers from which it was dropped, whoever else was."""
    monkeypatch.chdir(tmp_path)
    only = {2: {"l.1.q": (64, 64)}}
    case = Several(tmp_path, "BF16", (1, 0.5, 0.8), only=only)
    report = case.written((1, 0, 0))
    some = ("adapter dropped", "a1")
    assert found_in(report) == dict.fromkeys(NAMES, some) | {"l.1.q.weight": (*some, "a2")}
    done = call("verify", "out.safetensors", "base.safetensors", "a0", "a1=0.5", "a2=0.8",
                "--tensors-only")  # fmt: skip
    said = "a1 was dropped from all 3 tensors; a2 was dropped from 1 of 3 tensors"
    assert f"\nverdict: {said}\n" in done.stdout


def test_opposite_weights_that_may_be_swapped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Several(tmp_path, "F32", (0.5, -0.5)).written((-0.5, 0.5))
    done = call("verify", "out.safetensors", "base.safetensors", "a0=0.5", "a1=-0.5",
                "--tensors-only")  # fmt: skip
    said = "perhaps the weights of a0 and a1 or MERGED and BASE are swapped"
    assert said in done.stdout


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_nobody_is_named_who_was_not_dropped(tmp_path_factory, data):
    """Whatever the sizes are, and however many were."""
    size, count = 10 ** data.draw(st.floats(-2.5, 0.5)), data.draw(st.integers(3, 6))
    sizes = st.sampled_from([-1, 1e-6, 1e-3, 0.05, 0.5, 1, 1.3])
    weights = [size * data.draw(sizes) for _ in range(count)]
    folder = tmp_path_factory.mktemp("any")
    seed = data.draw(st.integers(0, 99))
    case = Several(folder, data.draw(st.sampled_from(DTYPES)), weights, seed)
    dropped = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    report = case.written([0 if n in dropped else weight for n, weight in enumerate(weights)])
    gone = {f"a{number}" for number in dropped}
    there = load_all(folder / "out.safetensors")
    for name, (fault, *named) in found_in(report).items():
        left = np.count_nonzero(there[name] != case.base[name])
        allowed = {"unknown", "scaled", *HARMLESS, *(["dropped"] if left < FEW else [])}
        assert set(named) <= gone if fault == "adapter dropped" else fault in allowed


def test_the_line_of_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Several(tmp_path, "BF16", (1, 0.5))
    command = ["verify", "out.safetensors", "base.safetensors", "a0", "a1=0.5", "--tensors-only"]
    case.written((1, 0))
    done = call(*command)
    assert done.returncode == 1
    assert "\nverdict: a1 was dropped from all 3 tensors\n" in done.stdout
    differences = json.loads(call(*command, "--json").stdout)["differences"]
    assert [d["adapters"] for d in differences] == [["a1"]] * 3
    case.written((0.5, 1))
    assert "\nverdict: the weights of a0 and a1 swapped in all 3 tensors\n" in call(*command).stdout
    case.written((0, 0))
    assert "\nverdict: the adapters were dropped from all 3 tensors\n" in call(*command).stdout
