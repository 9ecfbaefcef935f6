"""``verify`` takes what ``merge`` takes, and options mean the same everywhere."""

import json
import shutil

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import ArgumentError
from tests.cli.in_process import call, refused
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter


def test_the_arguments_of_a_merge_are_those_of_its_check(tiny, tmp_path):
    merge = [tiny[0], f"{tiny[1]}=0.25", f"{tiny[1]}=0.5"]
    assert call("merge", *merge, "-o", tmp_path / "out").returncode == 0
    assert call("verify", tmp_path / "out", *merge).returncode == 0
    assert call("verify", tmp_path / "out", *merge[:2]).returncode == 1


def test_quiet_verification_is_a_status(tiny, tmp_path):
    call("merge", *tiny, "-o", tmp_path / "out")
    for merged, status in ((tmp_path / "out", 0), (tiny[0], 1)):
        done = call("verify", merged, *tiny, "-q")
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_outputs_of_each_are_checked_together(tiny, tmp_path):
    tiny_adapter(seed=5).save(tmp_path / "other")
    given = [*tiny, f"{tmp_path / 'other'}=0.5", "--each"]
    assert call("merge", *given, "-o", tmp_path / "out").returncode == 0
    done = call("verify", tmp_path / "out", *given)
    assert done.returncode == 0
    for line, name in zip(done.stdout.splitlines(), ("adapter", "other"), strict=True):
        assert line.startswith(f"{tmp_path}/out/{name}: identical: 8 tensors (3 merged)")
    (tmp_path / "out" / "other" / "config.json").write_text("{}")
    done = call("verify", tmp_path / "out", *given, "--json")
    assert done.returncode == 1
    assert [(one["output"], one["identical"]) for one in json.loads(done.stdout)] == [
        (f"{tmp_path}/out/adapter", True), (f"{tmp_path}/out/other", False),
    ]  # fmt: skip


def test_an_output_that_cannot_be_read_hides_no_other(tiny, tmp_path):
    """Neither what is right before it nor what is wrong after it; all count in the status."""
    for number, name in enumerate(("broken", "gone", "other")):
        tiny_adapter(seed=number).save(tmp_path / name)
    given = [*tiny, *(tmp_path / name for name in ("broken", "gone", "other")), "--each"]
    out = tmp_path / "out"
    assert call("merge", *given, "-o", out).returncode == 0
    shutil.rmtree(out / "gone")
    for path in (out / "broken").glob("*.safetensors"):
        path.write_bytes(b"no header")
    (out / "other" / "config.json").write_text("{}")
    done = call("verify", out, *given)
    assert done.returncode == 2
    first, second, *rest = done.stdout.splitlines()
    assert first.startswith(f"{out}/adapter: identical: ")
    assert second == f"{out}/other: DIFFERENT: 1 file"
    assert [line[:2] for line in rest] == ["  "]
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"nola-edge: {out}/broken/")
    assert errors[1].startswith(f"nola-edge: {out}/gone: does not exist")
    quiet = call("verify", out, *given, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (2, "", done.stderr)
    found = json.loads(call("verify", out, *given, "--json").stdout)
    assert [one.get("identical") for one in found] == [True, None, None, False]
    assert [one["output"] for one in found] == [
        f"{out}/{name}" for name in ("adapter", "broken", "gone", "other")
    ]
    assert found[2]["error"]["file"] == f"{out}/gone"


def test_what_is_wrong_with_every_output_is_said_once(foreign, tmp_path):
    trained_adapter(MODULES, r=4, num_basis=10, seed=12).save(tmp_path / "free")
    base, bound = foreign
    given = [base, bound, tmp_path / "free", "--each"]
    call("merge", *given, "-o", tmp_path / "out", "--no-check-base")
    done = call("verify", tmp_path / "out", *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nola-edge: {tmp_path}/out/bound: {base}")
    assert done.stdout.startswith(f"{tmp_path}/out/free: identical: ")
    missing = call("verify", tmp_path / "out", tmp_path / "none", *given[1:])
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("rest", "missing"), [(["base"], "ADAPTER..."), ([], "BASE"), (["--each"], "BASE")]
)
def test_a_wrong_call_is_told_the_right_one(rest, missing):
    line = refused("verify", "merged", *rest)
    assert f"Missing argument '{missing}'" in line
    assert "usage: nola-edge verify [OPTIONS] MERGED BASE ADAPTER...; see" in line
    found = json.loads(call("verify", "merged", *rest, "--json").stdout)["error"]
    assert (found["type"], found["field"]) == ("UsageError", missing)


def test_base_and_adapters_may_be_given_by_name(tiny, tmp_path):
    """In any order, with weights, and with --each."""
    base, one, other = *tiny, tmp_path / "other"
    tiny_adapter(seed=5).save(other)
    call("merge", base, one, f"{other}=0.5", "-o", tmp_path / "out")
    call("merge", base, one, f"{other}=0.5", "--each", "-o", tmp_path / "each")
    named = ["--adapter", one, f"--adapter={other}=0.5", "--base", base]
    placed = [base, one, f"{other}=0.5"]
    for merged, options in ((tmp_path / "out", []), (tmp_path / "each", ["--each"])):
        done = call("verify", *named, merged, *options)
        assert done.stdout.count("identical: 8 tensors (3 merged)") == len(options) + 1
        assert done == call("verify", merged, *placed, *options)
    assert call("verify", tmp_path / "out", *named[:2], "--base", base).returncode == 1


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("M B A --base B --adapter A", "not as both: write MERGED BASE ADAPTER, or MERGED --base"),
        ("M B --adapter A", "not as both"),
        ("M A --base B", "not as both"),
        ("M B A --base B", "not as both"),
        ("M --base B --adapter A A", "with an --adapter before each ADAPTER"),
        ("M --base B --base C --adapter A", "--base is given more than once, as B and C"),
        ("M --base B", "--base needs --adapter as well"),
        ("M --adapter A", "--adapter needs --base as well"),
        ("--base B --adapter A", "Missing argument 'MERGED'"),
    ],
)
def test_half_of_each_way_is_refused(given, reason):
    assert reason in refused("verify", *given.split())


@pytest.fixture
def foreign(tiny, tmp_path):
    """A base, and an adapter that records the fingerprint of another."""
    trained_adapter(MODULES, r=4, num_basis=10, seed=11, base=tiny[0]).save(tmp_path / "bound")
    for path in tiny[0].glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    return tiny[0], tmp_path / "bound"


@pytest.mark.parametrize(
    "command",
    [
        ["merge", "{0}", "{1}", "-o", "{2}/out"],
        ["merge", "{0}", "{1}", "--each", "-o", "{2}/out"],
        ["verify", "{0}", "{0}", "{1}"],
        ["inspect", "{1}", "--base", "{0}"],
        ["export", "lora", "{1}", "--base", "{0}", "-o", "{2}/out"],
    ],
)
def test_another_base_is_refused_unless_it_is_not_checked(foreign, tmp_path, command):
    words = [word.format(*foreign, tmp_path) for word in command]
    before = snapshot(tmp_path)
    for given in (words, [*words, "--check-base"]):
        assert "pass --no-check-base (in Python check_base=False)" in refused(*given)
    assert snapshot(tmp_path) == before
    done = call(*words, "--no-check-base")
    assert (done.returncode in (0, 1), done.stderr) == (True, "")
    if command[0] == "merge":
        assert "the base was not checked: --no-check-base" in done.stdout


TYPES = ["f16", "F16", "float16", "Float16", "torch.float16", "half", "fp16"]


@pytest.mark.parametrize("option", ["--dtype", "--outtype"])
@pytest.mark.parametrize("name", TYPES)
def test_a_type_has_many_names(tiny, tmp_path, option, name):
    done = call("export", "lora", tiny[1], "--base", tiny[0], option, name, "-o", tmp_path / "l")
    assert done.returncode == 0, done.stderr
    kinds = {v.dtype for v in load_all(tmp_path / "l" / "adapter_model.safetensors").values()}
    assert kinds == {np.dtype(np.float16)}


@pytest.mark.parametrize("name", [*TYPES, np.dtype(np.float16)])
def test_a_type_has_as_many_names_in_python(tiny, tmp_path, name):
    ne.export_lora(tiny[1], tiny[0], tmp_path / "l", dtype=name)
    kinds = {v.dtype for v in load_all(tmp_path / "l" / "adapter_model.safetensors").values()}
    assert kinds == {np.dtype(np.float16)}


@pytest.mark.parametrize("name", ["f64", "float64", "torch.int8", "", "q8_0"])
def test_what_is_no_type_here(tiny, tmp_path, name):
    before = snapshot(tmp_path)
    line = refused(
        "export", "lora", tiny[1], "--base", tiny[0], "--dtype", name, "-o", tmp_path / "l"
    )
    assert f"{name!r} is not one of f32, f16, bf16" in line
    with pytest.raises(ArgumentError, match="must be one of F32, F16, BF16"):
        ne.export_lora(tiny[1], tiny[0], tmp_path / "l", dtype=name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("weight", ["1_0", "x", "nan", "inf", "", " 1", "0x1", "1e", "½", "٣"])
def test_what_is_no_weight(tiny, tmp_path, weight):
    before = snapshot(tmp_path)
    line = refused("merge", tiny[0], f"{tiny[1]}={weight}", "-o", tmp_path / "out")
    assert "is not a weight such as 0.5" in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("weight", ["1", "-0.5", "+.5", "2.", "1e-3", "1E2"])
def test_weights_are_decimal_numbers(tiny, tmp_path, weight):
    assert call("merge", tiny[0], f"{tiny[1]}={weight}", "-o", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("count", ["2147483648", "65536", "-1"])
def test_a_number_of_threads_that_cannot_be(tiny, tmp_path, count):
    line = refused("merge", *tiny, "-o", tmp_path / "out", "--threads", count)
    assert f"'--threads': {count} is not in the range 1<=x<=65535" in line
    assert not (tmp_path / "out").exists()
