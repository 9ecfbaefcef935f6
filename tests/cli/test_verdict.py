"""What ``verify`` prints of a merge by another program: a verdict, a table, and its status."""

import json
import math

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.cli.verdict import Verdict
from nola_edge.merge.audit import faults
from nola_edge.merge.audit.report import Difference, VerifyReport
from tests.cli.in_process import call
from tests.conftest import write_safetensors
from tests.merge.test_audit import NAMES, Case

F = np.float32


@pytest.fixture
def verify(tmp_path):
    """Return what verify says of what a program wrote."""

    def said(case, merge, *options):
        case.merged(merge)
        case.adapter.save(tmp_path / "adapter", force=True)
        paths = tmp_path / "out.safetensors", tmp_path / "base.safetensors", tmp_path / "adapter"
        return call("verify", *paths, "--tensors-only", *options)

    return said


def test_a_dropped_layer(tmp_path, verify):
    done = verify(
        Case(tmp_path, "F32"), lambda name, base, change: base + change * (name != NAMES[1])
    )
    first, verdict, header, row, *rest = done.stdout.splitlines()
    assert done.returncode == 1
    assert first.startswith("DIFFERENT: ")
    assert verdict.startswith("verdict: the adapter was dropped from 1 of 4 tensors")
    assert header.split() == ["part", "ulps", ">1", "ulp", "cause", "tensor"]
    assert row.split()[0] == "0.00"
    assert row.split()[-2:] == ["dropped", NAMES[1]]
    assert all("round" in line for line in rest)  # the faults come first


def test_a_tolerance_accepts_roundings_alone(tmp_path, verify):
    case = Case(tmp_path, "BF16")
    twice = lambda _, base, change: base + case.rounded(change).astype(F)  # noqa: E731
    assert verify(case, twice).returncode == 1
    assert verify(case, twice, "--ulps", 0).returncode == 1
    done = verify(case, twice, "--ulps", 1)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "the same within 1 ulp: 5 tensors (4 merged), 33.3 kB, 4 not identical; nothing else was "
        "compared",
        "verdict: right, but rounded twice",
    ]
    found = json.loads(verify(case, twice, "--ulps", 1, "--json").stdout)
    assert (found["identical"], found["accepted"]) == (False, True)
    assert found["verdict"] == "right, but rounded twice"
    assert {d["fault"] for d in found["differences"]} == {"rounded twice"}
    done = verify(case, twice, "--ulps", 1, "-q")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_small_change_that_is_dropped_is_not_accepted(tmp_path, verify):
    """No weight is off by more than an ulp, and yet the change, at most 1.49, is not there."""
    case = Case(tmp_path, "BF16")
    for name, change in case.change.items():
        ulp = 2.0 ** np.ceil(np.log2(np.abs(change).max() / 1.49))
        case.base[name] = np.full(change.shape, 192 * ulp, case.kind)
    write_safetensors(tmp_path / "base.safetensors", case.base)
    done = verify(case, lambda _, base, change: base, "--ulps", 1)
    assert done.returncode == 1
    assert "the adapter was dropped from all 4 tensors" in done.stdout
    found = json.loads(verify(case, lambda _, base, change: base, "--json").stdout)
    assert {d["ulps"] for d in found["differences"]} == {1}


def test_numbers_that_json_lacks(tmp_path, verify):
    done = verify(Case(tmp_path, "F16", 1.0), lambda _, base, c: base + F(1e6) * c, "--json")
    found = json.loads(done.stdout)
    assert found["verdict"] == "fp16 overflow in all 4 tensors"
    assert {d["ulps"] for d in found["differences"]} == {None}


def difference(fault, number=0, **numbers):
    given = {"part": 1.0, "right_part": 1.0, "factor": 1.0, "ulps": 3.0, "beyond": 0.5, **numbers}
    return Difference(f"t{number}.weight", "values", "differ", fault=fault, **given)


def said(*differences, merged=3, adapters=1):
    return Verdict(VerifyReport(merged=merged, differences=list(differences)), adapters).text


def test_the_line_of_verdict():
    assert said() is None
    assert said(Difference("t", "values", "differ")) is None  # of an unknown kind
    assert said(difference(faults.ROUNDING)) == "the difference is rounding"
    assert said(difference(faults.ROUNDING), difference(faults.ROUNDED_TWICE)) == (
        "right, but rounded twice"
    )
    assert said(difference(faults.MERGED_TWICE)) == "merged twice in 1 of 3 tensors"
    dropped = [difference(faults.DROPPED, number) for number in range(3)]
    assert said(*dropped, adapters=2) == "the adapters were dropped from all 3 tensors"
    assert said(*dropped[:2], difference(faults.ROUNDING)) == (
        "the adapter was dropped from 2 of 3 tensors; only rounding in 1 of 3 tensors"
    )
    a_of_b = [difference(faults.ADAPTER_DROPPED, 2, adapters=("a",))]
    b_of_a = [difference(faults.ADAPTER_DROPPED, n, adapters=("b", "c")) for n in range(2)]
    assert said(*a_of_b, *b_of_a, adapters=3) == (
        "a was dropped from 1 of 3 tensors; b and c were dropped from 2 of 3 tensors"
    )
    one_more = [difference(faults.ADAPTER_DROPPED, adapters=("a", "b"))]
    assert said(*a_of_b, *one_more, adapters=3) == (
        "a was dropped from 2 of 3 tensors; b was dropped from 1 of 3 tensors"
    )
    opposite = [difference(faults.SUBTRACTED, n, adapters=("a", "b")) for n in range(3)]
    assert said(*opposite[:2], adapters=2) == (
        "a and b were subtracted in 2 of 3 tensors; perhaps the weights of a and b are swapped"
    )
    assert said(*opposite, adapters=2) == (
        "a and b were subtracted in all 3 tensors; "
        "perhaps the weights of a and b or MERGED and BASE are swapped"
    )
    halves = [difference(faults.SCALED, factor=factor) for factor in (0.5, 0.501)]
    assert said(*halves) == "scaled by 0.5 in 2 of 3 tensors"
    assert said(*halves, difference(faults.SCALED, factor=2)) == (
        "scaled by various factors in all 3 tensors"
    )
    missing = Difference("t", "missing", "not in the merged files")
    assert said(difference(faults.UNTOUCHED), missing) == (
        "wrong values in 1 tensor that no adapter changes; 1 tensor missing"
    )


def test_every_fault_has_its_words():
    names = {value for name, value in vars(faults).items() if name.isupper() and name[0] != "_"
             and isinstance(value, str)}  # fmt: skip
    for fault in names:
        line = said(difference(fault, adapters=("a", "b")))
        assert line
        assert "{" not in line


def test_no_more_rows_than_a_screen_holds():
    found = [difference(faults.DROPPED, number, part=0.0) for number in range(50)]
    shown = Verdict(VerifyReport(merged=50, differences=found)).lines(tensors_only=True)
    assert len(shown) == 2 + 1 + 20 + 1
    assert shown[-1] == "  … and 30 more (all with --json)"
    assert all(len(line) <= 80 for line in shown)


@pytest.mark.parametrize(
    ("numbers", "row"),
    [
        ({"part": -0.001}, ["0.00", "3", "50%"]),
        ({"part": 0.2, "right_part": 0.5}, ["0.20 of 0.50", "3", "50%"]),
        ({"part": math.nan, "ulps": math.inf, "beyond": 1.0}, ["-", "inf", "100%"]),
        ({"ulps": 28_100_940.0, "beyond": 1e-7}, ["1.00", "2.81e+07", "<0.01%"]),
        ({"ulps": 1.0, "beyond": 0.99999}, ["1.00", "1", "99.9%"]),
    ],
)
def test_numbers_in_the_table(numbers, row):
    report = VerifyReport(merged=1, differences=[difference(faults.UNKNOWN, **numbers)])
    line = Verdict(report).lines(tensors_only=True)[3]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == [
        *row, "unknown", "t0.weight",
    ]  # fmt: skip


def test_files_in_each_others_place(tiny, tmp_path):
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "merged")
    done = call("verify", base, tmp_path / "merged", adapter, "--no-check-base")
    assert done.returncode == 1
    assert "subtracted in all" in done.stdout
    assert "; perhaps MERGED and BASE are swapped\n" in done.stdout
