"""The demonstration: what it says and leaves, that it is right, and that none of it needs torch."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.demo import comparison
from nola_edge.demo.child import result_of
from nola_edge.demo.examples import TASKS, examples, is_held_out, right_slots
from nola_edge.demo.kept import keep
from nola_edge.demo.places import SLOTS, as_list, as_text, parse_list, parse_text
from nola_edge.demo.scoring import DATA, Shipped, facts_of
from nola_edge.errors import MismatchError, NolaEdgeError, OutputError
from nola_edge.files.atomic import AtomicOutput
from tests.conftest import snapshot

KEPT = {
    "base.gguf", "base/config.json", "base/generation_config.json", "base/model.safetensors",
    "base/tokenizer.json", "base/tokenizer_config.json", "read.nola", "read/adapter_config.json",
    "read/adapter_model.safetensors", "say/adapter_config.json", "say/adapter_model.safetensors",
    "test.jsonl", "train.jsonl",
}  # fmt: skip

facts_of_any_place = st.fixed_dictionaries(
    {}, optional={slot: st.sampled_from(values) for slot, values in SLOTS.items()}
).map(lambda facts: {slot: facts[slot] for slot in SLOTS if slot in facts})


def run(*arguments, without_torch=None, cwd=None):
    environment = {**os.environ}
    if without_torch is not None:
        (without_torch / "torch.py").write_text("raise ImportError('not for a demonstration')\n")
        environment["PYTHONPATH"] = str(without_torch)
    command = [sys.executable, "-m", "nola_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the demonstration prints, and the folder that it leaves."""
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", "--keep", folder / "nola-demo")
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "nola-demo"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What it tells scripts, on a machine without torch."""
    done = run("demo", "--json", without_torch=tmp_path_factory.mktemp("absent"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_shipped_files_are_small_and_belong_together():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    shipped = Shipped()
    for task in TASKS:
        adapter = ne.Adapter.load(shipped.adapter(task))
        assert adapter.config.base_fingerprint is not None
        with ne.open_merged(shipped.base, shipped.adapter(task)) as tensors:
            assert len(tensors.plan.merges) == len(adapter.modules)


def test_nothing_that_it_is_judged_by_was_trained_on():
    shipped = Shipped()
    for task, prompts in shipped.prompts.items():
        texts = [shipped.text(prompt).removesuffix("\n") for prompt in prompts]
        assert len(set(texts)) >= 100
        assert all(is_held_out(facts_of(task, text)) for text in texts)
    assert not any(is_held_out(e.facts) for task in TASKS for e in examples(task, 2000, 1))


def test_adapters_are_right(told):
    assert [task["task"] for task in told["tasks"]] == ["say", "read"]
    for task in told["tasks"]:
        slots = [
            [right_slots(task["task"], facts_of(task["task"], a["prompt"]), a[when])
             for a in task["answers"]]
            for when in ("before", "after")
        ]  # fmt: skip
        for when, counted in zip(("before", "after"), slots, strict=True):
            assert task[when]["right"] == sum(right for right, _ in counted)
            assert task[when]["slots"] == sum(of for _, of in counted)
        assert task["after_percent"] >= 95
        assert task["before_percent"] <= 50
        assert task["after_percent"] == 100 * task["after"]["right"] / task["after"]["slots"]


def test_json_has_what_is_shown(told):
    assert told["identical"]
    assert told["differing"] == told["modules"] == 42
    assert told["kept"] is None
    assert told["ours"].keys() == told["plain"].keys() == {"seconds", "peak_bytes"}
    full, lora, nola = (size["numbers"] for size in told["sizes"])
    assert full > 5 * lora > 45 * nola


def test_output_is_for_a_terminal(shown, told):
    text, _ = shown
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    unwrapped = " ".join(text.split())
    for task in told["tasks"]:
        assert f"{task['task']}: {TASKS[task['task']]}" in text
        assert all(task["answers"][0][label] in unwrapped for label in ("prompt", "after"))
    assert "slots right" in text
    assert "bit for bit" in text


def test_what_is_kept(shown):
    _, folder = shown
    files = snapshot(folder)
    assert {name for name in files if (folder / name).is_file()} == KEPT
    assert sum((folder / name).stat().st_size for name in KEPT) < 6_000_000
    for task in TASKS:
        config = json.loads((folder / task / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "base"
    for name, least in (("train.jsonl", 500), ("test.jsonl", 100)):
        pairs = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert len(pairs) >= least
        for pair in pairs:
            assert parse_list(pair["completion"]) == parse_text(pair["prompt"].removesuffix("\n"))


def test_what_it_says_to_do_next_works(shown):
    text, folder = shown
    lines = [line.strip() for line in text.partition("  cd ")[2].splitlines()]
    assert lines[0] == str(folder)
    commands = [shlex.split(line) for line in lines if line.startswith("nola-edge ")]
    assert len(commands) >= 3
    for command in commands:
        done = run(*command[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
    done = run("verify", "merged", "base", "read.nola", cwd=folder)
    assert done.stdout.startswith("identical: ")


def test_another_base_is_refused(tmp_path):
    with AtomicOutput(tmp_path / "kept", directory=True) as output:
        keep(output)
    ne.merge_checkpoint(tmp_path / "kept" / "base", tmp_path / "kept" / "say", tmp_path / "other")
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match="was made for"):
        ne.merge_checkpoint(tmp_path / "other", tmp_path / "kept" / "read", tmp_path / "merged")
    assert snapshot(tmp_path) == before


def test_no_room_for_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="has only 1000 free; set TMPDIR") as caught:
        comparison.compare(lambda _: None)
    assert caught.value.file == tmp_path
    assert snapshot(tmp_path) == {}


def test_a_part_that_fails_is_one_line():
    with pytest.raises(NolaEdgeError, match=r"failed: .*No module named") as caught:
        result_of("nola_edge.demo.absent")
    assert str(caught.value).isprintable()


@given(facts_of_any_place, st.integers(0, 2**32))
def test_the_grammar_reads_what_it_says(facts, seed):
    assert parse_text(as_text(facts, random.Random(seed))) == facts
    if facts:
        assert parse_list(as_list(facts)) == facts


@given(facts_of_any_place, st.integers(0, 2**32), st.data())
def test_the_grammar_reads_nothing_else(facts, seed, data):
    """A text without one of its words says something else, or nothing."""
    words = as_text(facts, random.Random(seed)).split(" ")
    needed = [index for index, word in enumerate(words) if word != "its"]
    del words[data.draw(st.sampled_from(needed))]
    assert parse_text(" ".join(words)) != facts


@pytest.mark.parametrize(
    ("answer", "right", "slots"),
    [
        ("food: Thai, price: low", 2, 2),
        ("food: Thai", 1, 2),
        ("food: Greek, price: low", 1, 2),
        ("food: Thai, price: low, stars: 3", 2, 3),
        ("price: low, food: Thai", 0, 2),
        ("food: Thai, price: low.", 0, 2),
        ("food: Thai, price: low, price: low", 0, 2),
        ("food: Thai, price: cheap", 0, 2),
        ("", 0, 2),
    ],
)
def test_how_lists_are_judged(answer, right, slots):
    assert right_slots("read", {"food": "Thai", "price": "low"}, answer) == (right, slots)


@pytest.mark.parametrize(
    ("answer", "right", "slots"),
    [
        ("There is a low-priced Thai place.", 2, 2),
        ("There is a low-priced place. The kitchen is Thai.", 2, 2),
        ("There is a low-priced Thai pub.", 2, 3),
        ("There is a Thai place by the river.", 1, 3),
        ("There is an Thai place. Prices are low.", 0, 2),
        ("There is a Thai place. Prices are low. Prices are low.", 0, 2),
        ("There is a Thai place. prices are low.", 0, 2),
        ("There is a low-priced Thai place", 0, 2),
        ("There is a low-priced Thai place. It is nice.", 0, 2),
    ],
)
def test_how_texts_are_judged(answer, right, slots):
    assert right_slots("say", {"food": "Thai", "price": "low"}, answer) == (right, slots)


def test_quietly_it_only_keeps(tmp_path):
    done = run("demo", "-q", "--keep", tmp_path / "kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "kept" / "base.gguf").is_file()
