"""What verifying says of weights that another program merged: how far off they are, and why."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.merge.audit import compare, diagnosis
from tests import lora_folders
from tests.conftest import load_all, write_safetensors

F = np.float32
R = 9
#: Two that could be confused, one that is square alone, one that is not square.
SHAPES = {"l.0.q": (64, 64), "l.1.q": (64, 64), "l.0.o": (48, 48), "l.0.up": (96, 64)}
NAMES = [f"{module}.weight" for module in SHAPES]
DTYPES = ["BF16", "F16", "F32"]


class Case:
    """A base, an adapter, and what its exact change is."""

    def __init__(self, folder, dtype, weight=1.0, seed=3, **options):
        self.kind = numpy_dtype(dtype)
        self.folder = folder
        rng = np.random.default_rng(seed)
        self.base = {
            name: rng.standard_normal(shape).astype(F).astype(self.kind)
            for name, shape in zip(NAMES, SHAPES.values(), strict=True)
        }
        self.base["norm.weight"] = np.ones(7, F)
        options = {"r": R, "num_basis": 12, "seed": seed, "use_rslora": True, **options}
        self.adapter = trained_adapter(SHAPES, **options)
        self.given = [(self.adapter, weight)]
        write_safetensors(folder / "base.safetensors", self.base)
        self.change = {}
        for name, (module, shape) in zip(NAMES, SHAPES.items(), strict=True):
            a, b = self.adapter.factors(module, *shape)
            self.change[name] = b @ a * F(weight * self.adapter.scaling)

    def rounded(self, values):
        with np.errstate(over="ignore"):
            return values.astype(self.kind)

    def merged(self, merge):
        """Return a report on what a program wrote: merge(name, base, change), all in fp32."""
        tensors = {
            name: self.rounded(merge(name, values.astype(F), self.change[name]))
            for name, values in self.base.items()
            if name in NAMES
        }
        return self.verified({**self.base, **tensors})

    def verified(self, tensors, **options):
        write_safetensors(self.folder / "out.safetensors", tensors)
        paths = self.folder / "out.safetensors", self.folder / "base.safetensors"
        return ne.verify_checkpoint(*paths, self.given, tensors_only=True, **options)

    def ours(self):
        with ne.open_merged(self.folder / "base.safetensors", self.given) as tensors:
            return {name: np.array(tensors[name]) for name in tensors}


@pytest.fixture
def case(tmp_path):
    return lambda *given, **options: Case(tmp_path, *given, **options)


def faults(report):
    return {d.tensor: d.fault for d in report.differences}


def twice(case):
    return lambda _, base, change: case.rounded(base + change).astype(F) + change


MISTAKES = {
    "dropped": (lambda c: lambda _, base, change: base, 0),
    "subtracted": (lambda c: lambda _, base, change: base - change, -1),
    "merged twice": (twice, 2),
    "rsLoRA off": (lambda c: lambda _, base, change: base + change / F(math.sqrt(R)), 1 / 3),
    "scaled": (lambda c: lambda _, base, change: base + F(0.6) * change, 0.6),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", MISTAKES)
def test_a_mistake_in_scaling_is_named(case, dtype, fault):
    case = case(dtype)
    merge, part = MISTAKES[fault]
    report = case.merged(merge(case))
    assert faults(report) == dict.fromkeys(NAMES, fault)
    for difference in report.differences:
        assert difference.part == pytest.approx(part, abs=0.05)
        assert difference.factor == pytest.approx(part, abs=0.02)
        assert difference.ulps > 10
        assert 0.5 < difference.beyond <= 1
        assert not difference.within(10)


@pytest.mark.parametrize("weight", [0.1, 0.02])
@pytest.mark.parametrize("fault", MISTAKES)
def test_a_change_below_an_ulp_fools_nobody(case, fault, weight):
    """Most of it is rounded away: the part that is there tells little, where it is does."""
    case = case("BF16", weight)
    report = case.merged(MISTAKES[fault][0](case))
    assert set(faults(report).values()) <= {fault, "unknown"}
    assert list(faults(report).values()).count(fault) >= 3
    assert all(difference.right_part < 0.99 for difference in report.differences)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.5, 0.8, 0.95, 1.05, 1.5])
def test_a_scaling_that_is_slightly_wrong_is_found(case, dtype, factor):
    report = case(dtype, 2.0).merged(lambda _, base, change: base + F(factor) * change)
    assert faults(report) == dict.fromkeys(NAMES, "scaled")
    assert all(d.factor == pytest.approx(factor, abs=0.01) for d in report.differences)


def test_a_dropped_layer_is_found(case):
    case = case("BF16")
    report = case.merged(lambda name, base, change: base + change * (name != NAMES[1]))
    assert faults(report)[NAMES[1]] == "dropped"
    assert {f for n, f in faults(report).items() if n != NAMES[1]} <= {"rounding"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_layers_factors_are_found(case, dtype):
    case = case(dtype)
    one, two = NAMES[:2]
    swapped = {one: two, two: one}
    report = case.merged(lambda name, base, _: base + case.change[swapped.get(name, name)])
    found = {d.tensor: (d.fault, d.source) for d in report.differences if not d.harmless}
    assert found == {one: ("another layer", two), two: ("another layer", one)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_transposed_change_is_found(case, dtype):
    case = case(dtype)
    square = [name for name in NAMES if case.change[name].shape[0] == case.change[name].shape[1]]
    report = case.merged(lambda name, base, c: base + (c.T if name in square else c))
    assert {d.tensor: d.fault for d in report.differences if not d.harmless} == dict.fromkeys(
        square, "transposed"
    )


def test_weights_that_are_stored_transposed(case):
    """As GPT-2's Conv1D: what is transposed there is the change as others store it."""
    case = case("BF16", fan_in_fan_out=True)
    shape = SHAPES["l.0.q"]
    case.adapter = Adapter(case.adapter.config, {"l.0.q": case.adapter.modules["l.0.q"]})
    case.given = [case.adapter]
    a, b = case.adapter.factors("l.0.q", *shape)
    change = b @ a * F(case.adapter.scaling)
    out = case.base[NAMES[0]].astype(F) + change
    report = case.verified({**case.base, NAMES[0]: case.rounded(out)})
    assert faults(report) == {NAMES[0]: "transposed"}


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_two_roundings_are_no_mistake(case, dtype):
    case = case(dtype)
    report = case.merged(lambda _, base, change: base + case.rounded(change).astype(F))
    assert set(faults(report).values()) == {"rounded twice"}
    assert report.within(1)
    assert not report.within(0)
    assert not report


def test_adapters_that_are_merged_one_after_the_other_are_rounded_twice(case):
    case = case("BF16")
    case.given = [(case.adapter, 0.5), (case.adapter, 0.75)]
    report = case.merged(lambda _, base, c: case.rounded(base + F(0.5) * c).astype(F) + F(0.75) * c)
    assert set(faults(report).values()) == {"rounded twice"}
    report = case.merged(lambda _, base, change: base + F(0.5) * change)  # the second forgotten
    assert set(faults(report).values()) == {"scaled"}
    assert all(d.factor == pytest.approx(0.4, abs=0.01) for d in report.differences)
    assert set(faults(case.merged(lambda _, base, change: base)).values()) == {"dropped"}


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_change_in_bfloat16_is_imprecise(case, dtype):
    case = case(dtype)
    half = numpy_dtype("BF16")
    report = case.merged(lambda _, base, change: base + change.astype(half).astype(F))
    assert set(faults(report).values()) == {"imprecise"}
    assert not report.within(1)


def test_fp16_overflow_is_found_whoever_overflows(case):
    """In a product of its own, as in fp16; and where no fp16 can hold what base and change give."""
    small, large = case("F16"), NAMES[2]
    report = small.merged(
        lambda name, base, change: (
            np.where(change == change.max(), np.inf, base + change)
            if name == large
            else base + change
        )
    )
    found = {d.tensor: d for d in report.differences if not d.harmless}
    assert [(d.fault, d.ulps) for d in found.values()] == [("fp16 overflow", math.inf)]
    assert list(found) == [large]
    too_large = case("F16", 1e6)
    report = too_large.merged(lambda _, base, change: base + change)
    assert set(faults(report).values()) == {"fp16 overflow"}
    assert "too large for F16" in report.differences[0].detail


def test_a_value_that_is_no_number_has_no_distance(case):
    """Nor does it get one from what is compared after it."""
    case = case("F16")
    tensors = case.ours()
    tensors[NAMES[3]][0, 0] = np.nan
    tensors[NAMES[3]][-1, -1] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "_AT_ONCE", 64)
        (difference,) = case.verified(tensors).differences
    assert difference.detail == "2 of 6144 elements differ"
    assert math.isnan(difference.largest)
    assert difference.fault == "fp16 overflow"


def test_other_changes_are_not_explained(case):
    for dtype in DTYPES:
        made = case(dtype)
        rng = np.random.default_rng(1)
        report = made.merged(
            lambda _, base, c: base + c.std() * rng.standard_normal(base.shape, F)  # noqa: B023
        )
        assert set(faults(report).values()) == {"unknown"}
        half = made.merged(lambda _, base, c: base + c * (np.arange(len(c)) % 2 == 0)[:, None])
        assert set(faults(half).values()) == {"unknown"}


def test_one_broken_weight_is_no_rounding(case):
    case = case("BF16")
    tensors = case.ours()
    tensors[NAMES[0]][3, 4] += 100
    report = case.verified(tensors)
    assert faults(report) == {NAMES[0]: "broken weights"}
    assert not report.within(1000)


def test_tensors_that_nothing_is_merged_into(case):
    case = case("BF16")
    config = dataclasses.replace(case.adapter.config, modules_to_save=("norm",))
    whole = {"norm.weight": np.full(7, 2, F)}
    tensors = {**case.ours(), "norm.weight": np.full(7, 3, F)}
    assert faults(case.verified(tensors)) == {"norm.weight": "untouched"}
    case.given = Adapter(config, case.adapter.modules, whole)
    report = case.verified(tensors)
    assert faults(report) == {"norm.weight": "whole tensor"}
    assert not report.within(1000)


def test_an_adapter_that_changes_nothing(case):
    case = case("BF16")
    zero = {m: (c.alpha, np.zeros_like(c.beta)) for m, c in case.adapter.modules.items()}
    case.given = case.adapter.replace(zero)
    assert case.verified(case.base)
    tensors = {**case.base, NAMES[0]: case.rounded(case.base[NAMES[0]].astype(F) * F(1.5))}
    (difference,) = case.verified(tensors).differences
    assert (difference.fault, math.isnan(difference.part)) == ("unwanted", True)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_how_a_tensor_is_cut_does_not_show(tmp_path_factory, data):
    case = Case(tmp_path_factory.mktemp("cut"), "BF16", 0.3)
    fault = data.draw(st.sampled_from(sorted(MISTAKES)))
    whole = case.merged(MISTAKES[fault][0](case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            diagnosis, "_ELEMENTS", data.draw(st.integers(1, 3000).map(lambda n: n + 500))
        )
        patch.setattr(diagnosis, "_SAMPLES", 1000)
        with Checkpoint.open(case.folder / "out.safetensors"):
            cut = case.verified(load_all(case.folder / "out.safetensors"), num_threads=2)
    for one, other in zip(whole.differences, cut.differences, strict=True):
        assert (one.fault, one.ulps, one.beyond) == (other.fault, other.ulps, other.beyond)
        assert one.part == pytest.approx(other.part)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_mistake_is_taken_for_another(tmp_path_factory, data):
    """Whatever the sizes are: it is named rightly, or not at all."""
    weight = 10 ** data.draw(st.floats(-3, 0.5))
    case = Case(
        tmp_path_factory.mktemp("any"),
        data.draw(st.sampled_from(DTYPES)),
        weight,
        data.draw(st.integers(0, 99)),
    )
    fault = data.draw(st.sampled_from(sorted(MISTAKES)))
    merge = MISTAKES[fault][0](case)
    if fault == "scaled":
        factor = F(data.draw(st.sampled_from([0.2, 0.6, 0.75, 1.3, 1.7, 4])))
        merge = lambda _, base, change: base + factor * change  # noqa: E731
    found = faults(case.merged(merge))
    # Where all of what is left is rounded away, that is what it looks like.
    gone = {name for name in found if np.array_equal(case.base[name], _written(case, name))}
    assert {found[name] for name in found if name not in gone} <= {fault, "unknown", "rounding"}
    assert {found[name] for name in gone} <= {"dropped", "rounding"}
    right = case.merged(lambda _, base, change: base + case.rounded(change).astype(F))
    assert all(difference.harmless for difference in right.differences)


def _written(case, name):
    return load_all(case.folder / "out.safetensors")[name]


def lora(tmp_path, tensors=None, **fields):
    """Write a LoRA of two ranks for the shapes of this file."""
    ranks = dict(zip(SHAPES, (4, 9, 4, 16), strict=True))
    tensors = tensors or lora_folders.factors(SHAPES, ranks)
    patterns = {name: rank for name, rank in ranks.items() if rank != 4}
    return lora_folders.write_lora(tmp_path / "lora", tensors, rank_pattern=patterns, **fields)


def test_rslora_of_a_lora_with_many_ranks(case, tmp_path):
    case = case("BF16", 0.5)
    case.given = [(lora(tmp_path, use_rslora=True), 1.0)]
    exact = {name: values.astype(F) for name, values in case.base.items()}
    write_safetensors(tmp_path / "exact.safetensors", exact)
    with ne.open_merged(tmp_path / "exact.safetensors", case.given) as tensors:
        changes = {name: np.array(tensors[name]) - exact[name] for name in NAMES}
    ranks = dict(zip(NAMES, (4, 9, 4, 16), strict=True))
    report = case.merged(lambda name, base, _: base + changes[name] / F(math.sqrt(ranks[name])))
    assert faults(report) == dict.fromkeys(NAMES, "rsLoRA off")
    report = case.merged(lambda name, base, _: base + changes[name])
    assert all(difference.harmless for difference in report.differences)


@pytest.mark.parametrize("use_rslora", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rslora_of_adapters_with_different_ranks(case, tmp_path, dtype, use_rslora):
    """Each is scaled wrongly by its own rank, so the sum by no common factor."""
    case, exact = case(dtype), {}
    case.given, tensors = [], {}
    for rank in (4, 16):
        tensors[rank] = lora_folders.factors(SHAPES, dict.fromkeys(SHAPES, rank), seed=rank)
        fields = {"r": rank, "lora_alpha": 4, "use_rslora": use_rslora}
        folder = lora_folders.write_lora(tmp_path / f"r{rank}", tensors[rank], **fields)
        case.given.append((folder, 0.5))
        divisor = rank if use_rslora else math.sqrt(rank)
        for name, module in zip(NAMES, SHAPES, strict=True):
            b, a = (tensors[rank][f"{PREFIX}{module}.lora_{x}.weight"] for x in "BA")
            exact[name] = exact.get(name, 0) + F(0.5 * 4 / divisor) * (b @ a)
    report = case.merged(lambda name, base, _: base + exact[name])
    fault = "rsLoRA off" if use_rslora else "rsLoRA on"
    assert faults(report) == dict.fromkeys(NAMES, fault)


@pytest.mark.parametrize("use_rslora", [True, False])
def test_adapters_say_what_a_mistake_in_their_scaling_makes(tmp_path, use_rslora):
    """By the rank of each module."""
    other = (lambda rank: 8 / rank) if use_rslora else (lambda rank: 8 / math.sqrt(rank))
    stored = ne.load_adapter(lora(tmp_path, use_rslora=use_rslora))
    for module, rank in zip(SHAPES, (4, 9, 4, 16), strict=True):
        assert stored.mistaken_scaling(module) == pytest.approx(other(rank))
    trained = trained_adapter(SHAPES, r=R, num_basis=12, seed=1, use_rslora=use_rslora)
    assert trained.mistaken_scaling("l.0.q") == pytest.approx(
        other(R) * trained.config.lora_alpha * trained.config.beta_unit / 8
    )


class OfAnotherMethod(Adapter):
    """An adapter whose scaling may be mistaken in a way of its own."""

    def mistaken_scaling(self, module):
        return self.scaling_of(module) / 5


def test_any_method_may_say_what_a_mistake_makes(case):
    case = case("BF16")
    case.given = OfAnotherMethod(case.adapter.config, case.adapter.modules)
    report = case.merged(lambda _, base, change: base + change / F(5))
    assert faults(report) == dict.fromkeys(NAMES, "rsLoRA off")
    assert LowRankAdapter.mistaken_scaling(case.adapter, "l.0.q") is None


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_dora_that_a_program_leaves_off(case, tmp_path, dtype):
    case = case(dtype)
    plain = lora_folders.factors(SHAPES, dict(zip(SHAPES, (4, 9, 4, 16), strict=True)))
    case.given = lora(tmp_path, lora_folders.with_magnitudes(plain, 0), use_dora=True)
    assert case.verified(case.ours())
    assert set(faults(case.verified(case.base)).values()) == {"dropped"}
    a_and_b = {
        name: [plain[f"{PREFIX}{module}.lora_{factor}.weight"] for factor in "AB"]
        for name, module in zip(NAMES, SHAPES, strict=True)
    }
    scaling = dict(zip(NAMES, (8 / 4, 8 / 9, 8 / 4, 8 / 16), strict=True))
    report = case.merged(
        lambda name, base, _: base + F(scaling[name]) * (a_and_b[name][1] @ a_and_b[name][0])
    )
    assert set(faults(report).values()) == {"DoRA off"}


def ulps_away(case, ways):
    """Return a right merge with every weight moved by so many ulps, up or down in size."""
    return {
        name: (values.view(f"u{values.itemsize}") + ways(values)).view(values.dtype)
        if name in NAMES
        else values
        for name, values in case.ours().items()
    }


def all_up(values):
    return np.ones(values.shape, f"u{values.itemsize}")


def a_third_down(values):
    kept = np.arange(values.size).reshape(values.shape) % 3
    return (-(kept == 0).astype(np.int64)).astype(f"u{values.itemsize}")


def towards_positive(values):
    signs = np.where(values.astype(F) < 0, -1, 1).astype(np.int64)
    return signs.astype(f"u{values.itemsize}")


def most_up_or_down(values):
    ways = np.random.default_rng(1).choice([-1, 1, 0], values.shape, p=[0.35, 0.35, 0.3])
    return ways.astype(np.int64).astype(f"u{values.itemsize}")


def up_or_down(values):
    ways = np.random.default_rng(1).choice([-1, 1], values.shape)
    return ways.astype(np.int64).astype(f"u{values.itemsize}")


WAYS = [all_up, a_third_down, towards_positive, up_or_down, most_up_or_down]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ways", WAYS)
def test_an_ulp_in_every_weight_is_no_rounding(case, dtype, ways):
    """Roundings go both ways, and move no more than about half of the weights by one ulp."""
    case = case(dtype)
    report = case.verified(ulps_away(case, ways))
    assert faults(report) == dict.fromkeys(NAMES, "unknown")
    assert {d.ulps for d in report.differences} == {1}
    assert not report.within(1000)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_weights_that_are_truncated_are_not_rounded(case, dtype):
    case = case(dtype)

    def cut(_, base, change):
        exact = base + change
        near = case.rounded(exact)
        less = (near.view(np.uint16) - 1).view(case.kind)
        return np.where(np.abs(near.astype(F)) > np.abs(exact), less, near).astype(F)

    report = case.merged(cut)
    assert set(faults(report).values()) == {"truncated" if dtype == "BF16" else "unknown"}
    assert not report.within(1)
