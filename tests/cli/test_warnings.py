"""An adapter that adds nothing is merged as it is given, and not without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import NolaEdgeWarning
from tests.cli.in_process import call
from tests.conftest import MODULES, load_all, snapshot, unread_pipe
from tests.gguf.test_merge import adapter_of, arrays_of, write
from tests.lora_folders import PREFIX, factors, write_lora

ADDS_NOTHING = "so its factors add nothing to any weight; correct that, or leave the adapter out"


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lora(tmp_path / "zero", lora_alpha=0)
    write_lora(tmp_path / "lora")
    return tmp_path


GIVEN = {
    "adapter=0": "adapter: weight: is 0",
    "adapter=-0.0": "adapter: weight: is 0",
    "lora=1e-50": "lora: weight: 1e-50 times the scaling 2 is 0 in float32",
    "zero": "zero/adapter_config.json: lora_alpha: is 0 for all modules",
}


@pytest.mark.parametrize("given", GIVEN)
def test_one_line_on_stderr(here, given):
    line = f"warning: {GIVEN[given]}, {ADDS_NOTHING}\n"
    done = call("merge", "base", given, "-o", "out", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", line)
    assert all(
        np.array_equal(values, load_all(here / "base")[name])
        for name, values in load_all(here / "out").items()
    )
    done = call("verify", "out", "base", given)
    assert (done.returncode, done.stderr) == (0, line)
    assert done.stdout.startswith("identical: ")
    done = call("export", "lora", given, "--base", "base", "-o", "exported", "--json")
    assert (done.returncode, done.stderr) == (0, line)
    assert json.loads(done.stdout)["dtype"] == "F32"


#: What a command that says something on stderr ends with, if anybody can read that or not.
SAID_TO_NOBODY = {
    ("merge", "base", "zero", "-o", "out"): 0,
    ("merge", "base", "nowhere", "-o", "out"): 2,
    ("merge", "base"): 2,
    ("verify", "base", "base", "lora"): 1,
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", SAID_TO_NOBODY, ids=" ".join)
def test_what_cannot_be_printed_changes_no_status(here, command, unbuffered):
    """At once, or when Python ends and flushes what it has kept."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    status = SAID_TO_NOBODY[command]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nola_edge", *command],
            stdout=subprocess.DEVNULL,
            stderr=full,
            env=environment,
        )
    assert done.returncode == status
    assert (here / "out").exists() == (status == 0)


@pytest.mark.parametrize("command", SAID_TO_NOBODY, ids=" ".join)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "full"])
def test_a_pipe_that_nobody_reads_changes_no_status(here, command, closed):
    """Its reader has left, or does not come to it and would have to be waited for."""
    words = [sys.executable, "-m", "nola_edge", *command]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=unread_pipe(closed))
    assert done.returncode == SAID_TO_NOBODY[command]


def with_head(folder, *names, **fields):
    """Write a LoRA that has tensors whole."""
    whole = {f"{PREFIX}{name}.weight": np.full(40, 7, np.float32) for name in names}
    return write_lora(folder, factors() | whole, modules_to_save=list(names), **fields)


REPLACES = "its norm.weight replaces the base's"
WEIGHTS = {
    "head=0.5": f"head: weight: 0.5 is for its factors alone; {REPLACES} as a whole",
    "head=-1": f"head: weight: -1 is for its factors alone; {REPLACES} as a whole",
    "head=0": "head: weight: is 0, so its factors add nothing to any weight, but "
    f"{REPLACES} all the same; correct that",
    "still": "still/adapter_config.json: lora_alpha: is 0 for all modules, so its factors add "
    f"nothing to any weight, but {REPLACES} all the same; correct that",
}


@pytest.mark.parametrize("given", WEIGHTS)
def test_a_weight_is_not_for_whole_tensors(here, given):
    """They take the place of the base's, whatever the weight is."""
    norm = load_all(here / "base")["norm.weight"]
    assert norm.shape == (40,)
    with_head(here / "head", "norm")
    with_head(here / "still", "norm", lora_alpha=0)
    line = f"warning: {WEIGHTS[given]}\n"
    done = call("merge", "base", given, "-o", "out", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", line)
    assert (load_all(here / "out")["norm.weight"] == 7).all()
    assert call("verify", "out", "base", given).stderr == line


def test_a_weight_of_1_is_for_both(here):
    with_head(here / "head", "norm")
    for number, given in enumerate(("head", "head=1")):
        assert call("merge", "base", given, "-o", f"out{number}", "-q").stderr == ""


def test_few_whole_tensors_are_named(here):
    with_head(here / "head", *"abcde")
    with pytest.warns(NolaEdgeWarning, match="its a.weight, b.weight, c.weight and 2 more replace"):
        ne.merge_checkpoint("base", [("head", 0.5)], "out")


def test_each_is_named_once(here):
    names = ["adapter", "zero", "zero", "lora"]
    done = call("merge", "base", *names, "-o", "out", "-q")
    assert done.stderr == f"warning: {GIVEN['zero']}, {ADDS_NOTHING}\n"
    done = call("merge", "base", "zero", "lora", "--each", "-o", "each", "-q")
    assert done.stderr == f"warning: {GIVEN['zero']}, {ADDS_NOTHING}\n"
    done = call("merge", "base", "zero", "adapter=0", "-o", "two", "-q")
    assert done.stderr.count("warning: ") == done.stderr.count("\n") == 2


def test_gguf(here):
    write(here / "base.gguf", arrays_of("F16"))
    adapter_of().save(here / "of-gguf")
    line = f"warning: of-gguf: weight: is 0, {ADDS_NOTHING}\n"
    done = call("merge", "base.gguf", "of-gguf=0", "-o", "out.gguf")
    assert (done.returncode, done.stderr) == (0, line)
    assert call("verify", "out.gguf", "base.gguf", "of-gguf=0").stderr == line


def test_what_adds_something_is_no_reason_to_warn(here):
    for given in ("adapter", "lora=-1", "lora=1e-30"):
        done = call("merge", "base", given, "-o", f"out{given}")
        assert (done.returncode, done.stderr) == (0, "")


def switched(arrays, adapter):
    with ne.ArraySwitch(arrays, "base") as switch:
        switch.add("one", adapter)
        switch.use("one")


def test_in_python_the_callers_line_is_named(here):
    verbs = {
        "merge": lambda: ne.merge_checkpoint("base", "zero", "out"),
        "verify": lambda: ne.verify_checkpoint("out", "base", [("zero", 1.0)]),
        "open": lambda: ne.open_merged("base", "zero").close(),
        "export": lambda: ne.export_lora("zero", None, "exported"),
        "each": lambda: ne.merge_each("base", ["zero"], "several"),
        "switch": lambda: switched(load_all(here / "base"), "zero"),
    }
    for verb in verbs.values():
        with pytest.warns(NolaEdgeWarning, match="zero/adapter_config.json: lora_alpha: is") as got:
            verb()
        assert [warning.filename for warning in got] == [__file__]


def test_a_warning_that_is_an_error_stops_before_anything_is_written(here):
    before = snapshot(here)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NolaEdgeWarning)
        with pytest.raises(NolaEdgeWarning, match="weight: is 0"):
            ne.merge_checkpoint("base", [("adapter", 0)], "out")
    assert snapshot(here) == before


def test_a_change_where_there_should_be_none(here):
    """Merged with the scaling that the configuration lacks now."""
    assert call("merge", "base", "lora", "-o", "out").returncode == 0
    done = call("verify", "out", "base", "zero")
    assert done.returncode == 1
    modules = f"all {len(MODULES)} tensors"
    assert f"verdict: changes in {modules}, to which the adapter adds nothing\n" in done.stdout
    assert call("verify", "out", "base", "zero", "--ulps", 1).returncode == 1
