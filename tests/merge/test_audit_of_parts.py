"""What verifying says of tensors that hold several modules: each module is judged by itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.dtypes import numpy_dtype
from tests import lora_folders
from tests.cli.in_process import call
from tests.conftest import write_safetensors

F = np.float32
DTYPES = ["BF16", "F16", "F32"]
INPUTS, ALPHA = 64, 8
TENSOR = "l.qkv.weight"
RANKS = {"q": 9, "k": 4, "v": 16}


class Fused:
    """A base of one tensor, and a LoRA for modules that are some lines of it each."""

    def __init__(self, folder, dtype="BF16", outputs=(64, 64, 64), gap=0, turned=False, **fields):
        self.folder, self.kind, self.turned = folder, numpy_dtype(dtype), turned
        rng = np.random.default_rng(7)
        self.lines, begin = {}, gap
        for name, count in zip(RANKS, outputs, strict=True):
            self.lines[name] = begin, begin + count
            begin += count
        self.base = rng.standard_normal((begin + gap, INPUTS)).astype(F).astype(self.kind)
        modules = {f"l.{name}": (end - start, INPUTS) for name, (start, end) in self.lines.items()}
        self.factors = lora_folders.factors(modules, {f"l.{name}": r for name, r in RANKS.items()})
        tensors = self.factors
        if fields.get("use_dora"):
            tensors = lora_folders.with_magnitudes(tensors, 0)
        fields = {"use_rslora": True, "rank_pattern": RANKS, "fan_in_fan_out": turned, **fields}
        self.adapter = lora_folders.write_lora(folder / "lora", tensors, lora_alpha=ALPHA, **fields)
        self.renames = [f"{name}=qkv[{a}:{b}]" for name, (a, b) in self.lines.items()]
        self.write("base", self.base)

    def write(self, name, lines):
        stored = np.ascontiguousarray(lines.T if self.turned else lines)
        path = self.folder / f"{name}.safetensors"
        write_safetensors(path, {TENSOR: stored, "norm.weight": np.ones(7, F)})
        return path

    def change(self, name):
        b, a = (self.factors[f"{PREFIX}l.{name}.lora_{x}.weight"] for x in "BA")
        return F(ALPHA / math.sqrt(RANKS[name])) * (b @ a)

    def right(self):
        given = {"rename": self.renames}
        with ne.open_merged(self.folder / "base.safetensors", self.adapter, **given) as found:
            lines = np.array(found[TENSOR])
        return lines.T.copy() if self.turned else lines

    def with_change(self, name, change):
        """Return the right tensor, but for a module that has another change."""
        lines, here = self.right(), slice(*self.lines[name])
        lines[here] = (self.base[here].astype(F) + change).astype(self.kind)
        return lines

    def report(self, lines):
        paths = self.write("out", lines), self.folder / "base.safetensors"
        options = {"rename": self.renames, "tensors_only": True}
        return ne.verify_checkpoint(*paths, self.adapter, **options)

    def name(self, module):
        start, end = self.lines[module]
        return f"l.{module} in {TENSOR}[{start}:{end}]"


#: Fault -> the part of the change that it leaves, of some rank.
PARTS = {
    "dropped": lambda _: 0,
    "subtracted": lambda _: -1,
    "merged twice": lambda _: 2,
    "rsLoRA off": lambda rank: 1 / math.sqrt(rank),
    "scaled": lambda _: 0.6,
}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_each_module_is_judged_by_itself(tmp_path_factory, data):
    """Whatever was done to its neighbours, in rows and in columns, of any dtype."""
    case = Fused(
        tmp_path_factory.mktemp("fused"),
        data.draw(st.sampled_from(DTYPES)),
        data.draw(st.tuples(*[st.integers(40, 90)] * 3)),
        data.draw(st.sampled_from([0, 5])),
        data.draw(st.booleans()),
    )
    faults = st.sampled_from([None, *PARTS])
    planted = {name: data.draw(faults) for name in RANKS}
    lines = case.right()
    for name, fault in planted.items():
        if fault is not None:
            change = F(PARTS[fault](RANKS[name])) * case.change(name)
            here = slice(*case.lines[name])
            lines[here] = case.with_change(name, change)[here]
    report = case.report(lines)
    assert {d.name: d.fault for d in report.differences} == {
        case.name(name): fault for name, fault in planted.items() if fault is not None
    }
    assert [(d.module, d.lines) for d in report.differences] == [
        (f"l.{name}", case.lines[name]) for name, fault in planted.items() if fault is not None
    ]
    assert (report.merged, report.weights, report.tensors) == (1, 3, 2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_that_got_each_others_change(tmp_path, dtype, turned):
    case = Fused(tmp_path, dtype, turned=turned)
    lines = case.with_change("q", case.change("k"))
    here = slice(*case.lines["k"])
    lines[here] = case.with_change("k", case.change("q"))[here]
    found = {d.name: (d.fault, d.source) for d in case.report(lines).differences}
    assert found == {
        case.name("q"): ("another layer", case.name("k")),
        case.name("k"): ("another layer", case.name("q")),
    }


@pytest.mark.parametrize("turned", [False, True])
def test_lines_that_no_adapter_changes(tmp_path, turned):
    case = Fused(tmp_path, gap=5, turned=turned)
    lines = case.right()
    lines[2] += 1
    lines[case.lines["v"][0], 3] += 100
    gap, broken = case.report(lines).differences
    assert (gap.name, gap.module, gap.fault) == (f"{TENSOR}[0:5]", None, "untouched")
    assert gap.elements == INPUTS
    assert (broken.name, broken.fault) == (case.name("v"), "broken weights")


@pytest.mark.parametrize("turned", [False, True])
def test_dora_of_one_module_that_is_left_off(tmp_path, turned):
    case = Fused(tmp_path, "F32", turned=turned, use_dora=True)
    assert case.report(case.right())
    lines = case.with_change("k", case.change("k"))
    assert {d.name: d.fault for d in case.report(lines).differences} == {case.name("k"): "DoRA off"}
    here = slice(*case.lines["v"])
    lines[here] = case.base[here]
    assert [d.fault for d in case.report(lines).differences] == ["DoRA off", "dropped"]


def test_an_adapter_of_all_lines_beside_one_of_some(tmp_path):
    """The lines are divided where the terms change; a difference names the narrower module."""
    case = Fused(tmp_path)
    wide = {"l.qkv": (len(case.base), INPUTS)}
    factors = lora_folders.factors(wide, {"l.qkv": 3})
    whole = lora_folders.write_lora(tmp_path / "wide", factors, r=3, lora_alpha=ALPHA)
    case.adapter = [(whole, 0.5), (case.adapter, 1.0)]
    lines, here = case.right(), slice(*case.lines["k"])
    lines[here] = case.base[here]
    (difference,) = case.report(lines).differences
    assert (difference.name, difference.fault) == (case.name("k"), "dropped")


def test_what_the_command_line_says(tmp_path):
    case = Fused(tmp_path)
    out, base = case.write("out", case.with_change("k", 0)), tmp_path / "base.safetensors"
    renames = [option for rule in case.renames for option in ("--rename", rule)]
    given = "verify", out, base, case.adapter, "--tensors-only", *renames
    done = call(*given)
    first, verdict, _, row = done.stdout.splitlines()
    assert (done.returncode, first) == (1, "DIFFERENT: 1 tensor")
    assert verdict == "verdict: the adapter was dropped from 1 of 3 matrices"
    assert row.endswith(f"dropped  {case.name('k')}")
    (found,) = json.loads(call(*given, "--json").stdout)["differences"]
    assert (found["tensor"], found["module"], found["lines"]) == (TENSOR, "l.k", [64, 128])
