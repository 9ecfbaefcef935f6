"""What verifying says of GGUF files that another program merged, quantised or not."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nola_edge.demo.synthetic import trained_adapter
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.merge.audit import diagnosis
from tests.cli.in_process import call
from tests.gguf.encode import encode, llama_pairs
from tests.gguf.test_merge import (
    DTYPES,
    HEADS,
    KEY_HEADS,
    MODULES,
    adapter_of,
    arrays_of,
    factors,
    quantized,
    stored_name,
)

pytest.importorskip("gguf")
F = np.float32
R = 9
QUANTIZED = ["Q8_0", "Q5_1", "Q4_0"]
KINDS = [*DTYPES, *QUANTIZED]
SOME = ["BF16", "Q8_0", "Q4_0"]
NAMES = [stored_name(module) for module in MODULES]
SHAPES = {stored_name(module): shape for module, shape in MODULES.items()}
SQUARE = [name for name, (rows, cols) in SHAPES.items() if rows == cols]
INTERLEAVED = [name for name in NAMES if "attn_q" in name or "attn_k" in name]


class Case:
    """A base, an adapter, and what its exact change is."""

    def __init__(self, folder, kind, size=0.5, seed=5, outtype=None):
        self.folder, self.kind, self.outtype = folder, kind, outtype
        self.arrays = arrays_of(kind, seed)
        self.adapter = adapter_of(r=R, num_basis=12, use_rslora=True, seed=seed)
        self.change, self.plain = {}, {}
        for module, name in zip(MODULES, NAMES, strict=True):
            a, b = factors(self.adapter, module)
            held = self.adapter.factors(module, *MODULES[module])
            self.change[name] = b @ a * F(self.adapter.scaling)
            self.plain[name] = held[1] @ held[0] * F(self.adapter.scaling)
        # As large as the weights, times `size`.
        self.weight = size * 0.1 / np.std(self.change[NAMES[0]])
        self.change, self.plain = (
            {name: F(self.weight) * values for name, values in found.items()}
            for found in (self.change, self.plain)
        )
        self.write("base.gguf", self.arrays)
        self.base = {name: self.values("base.gguf", name) for name in NAMES}

    @property
    def given(self):
        return [(self.adapter, self.weight)]

    def write(self, name, arrays):
        (self.folder / name).write_bytes(encode(llama_pairs(HEADS, KEY_HEADS), arrays))

    def values(self, file, name):
        from gguf import GGMLQuantizationType, quants

        with GgufFile.open(self.folder / file) as opened:
            info = opened.tensors[name]
            data = np.empty((info.shape[0], info.nbytes // info.shape[0]), np.uint8)
            opened.read_into(data.reshape(-1).data, info.start)
        return quants.dequantize(data, GGMLQuantizationType[info.dtype]).astype(F)

    def stored(self, values):
        kind = self.outtype or self.kind
        with np.errstate(over="ignore"):
            return values.astype(DTYPES[kind]) if kind in DTYPES else quantized(values, kind)

    def merged(self, merge):
        """Return a report on what a program wrote: merge(name, base, change), all in fp32."""
        made = {
            name: self.stored(merge(name, base, self.change[name]))
            for name, base in self.base.items()
        }
        return self.verified({**self.arrays, **made})

    def verified(self, arrays, **options):
        self.write("out.gguf", arrays)
        paths = self.folder / "out.gguf", self.folder / "base.gguf"
        return verify_gguf(*paths, self.given, **options)


@pytest.fixture
def case(tmp_path):
    return lambda *given, **options: Case(tmp_path, *given, **options)


def faults(report):
    return {d.tensor: d.fault for d in report.differences}


MISTAKES = {
    "dropped": (lambda base, change: base, 0),
    "subtracted": (lambda base, change: base - change, -1),
    "merged twice": (lambda base, change: base + 2 * change, 2),
    "rsLoRA off": (lambda base, change: base + change / F(math.sqrt(R)), 1 / 3),
    "scaled": (lambda base, change: base + F(0.6) * change, 0.6),
}


def mistaken(fault):
    return lambda _, base, change: MISTAKES[fault][0](base, change)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", MISTAKES)
def test_a_mistake_in_scaling_is_named(case, kind, fault):
    report = case(kind).merged(mistaken(fault))
    assert faults(report) == dict.fromkeys(NAMES, fault)
    for difference in report.differences:
        assert difference.unit == ("step" if kind in QUANTIZED else "ulp")
        assert difference.part == pytest.approx(MISTAKES[fault][1], abs=0.05)
        assert difference.right_part == pytest.approx(1, abs=0.05)
        assert difference.ulps > 1
        assert not difference.within(math.inf)


@pytest.mark.parametrize(("kind", "outtype"), [("F16", "Q8_0"), ("Q8_0", "F16"), ("Q4_0", "Q8_0")])
@pytest.mark.parametrize("fault", MISTAKES)
def test_merged_tensors_of_another_type(case, kind, outtype, fault):
    report = case(kind, outtype=outtype).merged(mistaken(fault))
    assert set(faults(report)) == set(NAMES)
    assert set(faults(report).values()) == {fault}


@pytest.mark.parametrize("kind", SOME)
def test_a_dropped_tensor_is_found(case, kind):
    report = case(kind).merged(lambda name, base, change: base + change * (name != NAMES[1]))
    assert {d.tensor: d.fault for d in report.differences if not d.harmless} == {
        NAMES[1]: "dropped"
    }


@pytest.mark.parametrize("kind", SOME)
def test_rows_in_the_order_of_hugging_face(case, kind):
    made = case(kind)
    report = made.merged(lambda name, base, _: base + made.plain[name])
    found = {d.tensor: d.fault for d in report.differences if not d.harmless}
    assert found == dict.fromkeys(INTERLEAVED, "row order")


@pytest.mark.parametrize("kind", SOME)
def test_a_transposed_change_is_found(case, kind):
    report = case(kind).merged(lambda name, base, c: base + (c.T if name in SQUARE else c))
    assert {d.tensor: d.fault for d in report.differences if not d.harmless} == dict.fromkeys(
        SQUARE, "transposed"
    )


@pytest.mark.parametrize("kind", SOME)
def test_another_layers_factors_are_found(case, kind):
    made = case(kind)
    one, two = (f"blk.{layer}.attn_v.weight" for layer in range(2))
    swapped = {one: two, two: one}
    report = made.merged(lambda name, base, _: base + made.change[swapped.get(name, name)])
    found = {d.tensor: (d.fault, d.source) for d in report.differences if not d.harmless}
    assert found == {one: ("another layer", two), two: ("another layer", one)}


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_merge_in_halves_that_is_then_quantised(case, kind, half):
    made = case(kind)
    report = made.merged(lambda _, base, c: (base + c).astype(half).astype(F))
    assert set(faults(report).values()) <= {"rounded twice", "rounding"}
    assert report.within(2)
    assert not report.within(0)


def test_a_small_change_survives_in_part(case):
    """Below a step most of it is rounded away; what is there is compared with a right merge."""
    report = case("Q4_0", 0.08).merged(mistaken("dropped"))
    assert faults(report) == dict.fromkeys(NAMES, "dropped")
    assert all(0.1 < difference.right_part < 0.95 for difference in report.differences)
    assert {difference.part for difference in report.differences} == {0}
    assert not report.within(2)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_broken_block(case, kind):
    made = case(kind)
    merge_gguf(made.folder / "base.gguf", made.given, made.folder / "ours.gguf")
    with GgufFile.open(made.folder / "ours.gguf") as file:
        begin = file.tensors[NAMES[2]].start
    data = bytearray((made.folder / "ours.gguf").read_bytes())
    for scale, fault in ((0x5640, "broken weights"), (0x7C00, "not finite")):
        data[begin : begin + 2] = scale.to_bytes(2, "little")
        (made.folder / "broken.gguf").write_bytes(data)
        report = verify_gguf(made.folder / "broken.gguf", made.folder / "base.gguf", made.given)
        assert faults(report) == {NAMES[2]: fault}
        assert not report.within(1e9)


def test_a_step_in_every_weight_is_no_rounding(case):
    made = case("Q8_0")
    merge_gguf(made.folder / "base.gguf", made.given, made.folder / "ours.gguf")
    with GgufFile.open(made.folder / "ours.gguf") as file:
        info = file.tensors[NAMES[2]]
    data = np.fromfile(made.folder / "ours.gguf", np.uint8)
    blocks = data[info.start : info.start + info.nbytes].reshape(-1, 34)  # a scale and 32 steps
    steps = blocks[:, 2:].view(np.int8)
    steps += steps < 127
    data.tofile(made.folder / "up.gguf")
    report = verify_gguf(made.folder / "up.gguf", made.folder / "base.gguf", made.given)
    assert faults(report) == {NAMES[2]: "unknown"}
    assert [difference.ulps for difference in report.differences] == [1]
    assert not report.within(1e9)


def test_a_tensor_that_nothing_is_merged_into(case):
    made = case("Q8_0")
    norm = {NAMES[0].replace("weight", "norm"): np.full(7, 2, F)}
    report = made.merged(lambda _, base, change: base + change)
    assert report.identical
    made.arrays |= norm
    (difference,) = made.merged(lambda _, base, change: base + change).differences
    assert difference.fault == "untouched"


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_other_changes_are_not_explained(case, kind):
    rng = np.random.default_rng(1)
    report = case(kind).merged(
        lambda _, base, c: base + c.std() * rng.standard_normal(base.shape, F)
    )
    assert set(faults(report).values()) == {"unknown"}


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.floats(-3, 0.5).map(lambda exponent: 10**exponent),
    seed=st.integers(0, 99),
    outtype=st.sampled_from([None, None, "Q8_0", "F16"]),
    fault=st.sampled_from(sorted(MISTAKES)),
)
@example("Q4_0", 1e-3, 0, "Q8_0", "scaled")
def test_no_mistake_is_taken_for_another(tmp_path_factory, kind, size, seed, outtype, fault):
    """Whatever the type and the size of the change: it is named rightly, or not at all."""
    made = Case(tmp_path_factory.mktemp("any"), kind, size, seed, outtype)
    found = faults(made.merged(mistaken(fault)))
    gone = {n for n in found if np.array_equal(made.base[n], made.values("out.gguf", n))}
    assert {found[name] for name in found if name not in gone} <= {fault, "unknown", "rounding"}
    assert {found[name] for name in gone} <= {"dropped", "rounding"}


def test_what_is_printed(case, tmp_path):
    made = case("Q8_0")
    made.merged(lambda name, base, change: base + change * (name != NAMES[0]))
    made.adapter.save(tmp_path / "adapter")
    paths = tmp_path / "out.gguf", tmp_path / "base.gguf", f"{tmp_path / 'adapter'}={made.weight}"
    done = call("verify", *paths)
    first, verdict, header, row, *_ = done.stdout.splitlines()
    assert (done.returncode, first) == (1, "DIFFERENT: 1 tensor")
    assert verdict == "verdict: the adapter was dropped from 1 of 8 tensors"
    assert header.split() == ["part", "steps", ">1", "step", "cause", "tensor"]
    assert row.split()[0] == "0.00"
    assert row.split()[-2:] == ["dropped", NAMES[0]]


def test_a_tolerance_counts_steps(case, tmp_path):
    made = case("Q8_0")
    made.merged(lambda _, base, c: (base + c).astype(np.float16).astype(F))
    made.adapter.save(tmp_path / "adapter")
    paths = tmp_path / "out.gguf", tmp_path / "base.gguf", f"{tmp_path / 'adapter'}={made.weight}"
    assert call("verify", *paths).returncode == 1
    done = call("verify", *paths, "--ulps", 2)
    assert done.returncode == 0
    assert done.stdout.startswith("the same within 2 steps: ")
    made.merged(mistaken("dropped"))
    assert call("verify", *paths, "--ulps", 1000).returncode == 1


def test_a_base_of_a_type_that_is_only_read(case):
    """K-quants: merged tensors are of another type, in which they are judged."""
    from gguf import GGMLQuantizationType, quants

    made = case("F16", outtype="Q8_0")
    module = "model.layers.0.self_attn.v_proj"
    name, shape = stored_name(module), (64, 256)
    blocks = np.random.default_rng(0).integers(0, 255, (64, 144), np.uint8)
    blocks[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
    base = quants.dequantize(blocks, GGMLQuantizationType.Q4_K)
    made.arrays = {name: ("Q4_K", shape, blocks.tobytes())}
    made.write("base.gguf", made.arrays)
    made.adapter, made.weight = trained_adapter({module: shape}, r=5, num_basis=9, seed=1), 1.0
    a, b = made.adapter.factors(module, *shape)
    change = b @ a * F(made.adapter.scaling)
    assert made.verified({name: made.stored(base + change)})
    for factor, fault in ((0, "dropped"), (2, "merged twice"), (-1, "subtracted")):
        (found,) = made.verified({name: made.stored(base + F(factor) * change)}).differences
        assert (found.fault, found.unit) == (fault, "step")
        assert found.part == pytest.approx(factor, abs=0.1)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_several_adapters(case, kind):
    made = case(kind)
    both = [(made.adapter, 0.5 * made.weight), (made.adapter, 0.75 * made.weight)]
    made.change = {name: F(1.25) * change for name, change in made.change.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "given", both)
        one_by_one = made.merged(lambda _, base, c: _again(made, base + F(0.4) * c) + F(0.6) * c)
        assert all(difference.harmless for difference in one_by_one.differences)
        assert "rounded twice" in faults(one_by_one).values()
        forgotten = made.merged(lambda _, base, c: base + F(0.4) * c)
        assert faults(forgotten) == dict.fromkeys(NAMES, "scaled")


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_mistake_with_one_of_several_adapters(case, kind):
    made = case(kind)
    other = adapter_of(r=5, num_basis=12, use_rslora=True, seed=6)
    more = {
        name: np.matmul(*factors(other, module)[::-1]) * F(other.scaling * made.weight)
        for module, name in zip(MODULES, NAMES, strict=True)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "given", [(made.adapter, made.weight), (other, 0.5 * made.weight)])
        dropped = made.merged(lambda _, base, change: base + change)
        assert faults(dropped) == dict.fromkeys(NAMES, "adapter dropped")
        named = {d.adapters for d in dropped.differences}
        assert named == {(f"<adapter in memory>={0.5 * made.weight:g}",)}
        swapped = made.merged(lambda name, base, change: base + F(0.5) * change + more[name])
        assert faults(swapped) == dict.fromkeys(NAMES, "weights swapped")


def _again(made, values):
    """Return values as they are after they were written."""
    from gguf import GGMLQuantizationType, quants

    stored = made.stored(values)
    if not isinstance(stored, tuple):
        return stored.astype(F)
    kind, shape, data = stored
    rows = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
    return quants.dequantize(rows, GGMLQuantizationType[kind])


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_how_a_tensor_is_cut_does_not_show(tmp_path_factory, data):
    made = Case(tmp_path_factory.mktemp("cut"), data.draw(st.sampled_from(["F16", "Q8_0"])))
    fault = data.draw(st.sampled_from(sorted(MISTAKES)))
    whole = made.merged(mistaken(fault))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "_ELEMENTS", 32 * data.draw(st.integers(1, 100)))
        patch.setattr(diagnosis, "_SAMPLES", 1000)
        cut = made.merged(mistaken(fault))
    for one, other in zip(whole.differences, cut.differences, strict=True):
        assert (one.fault, one.ulps, one.beyond) == (other.fault, other.ulps, other.beyond)
        assert one.part == pytest.approx(other.part)
