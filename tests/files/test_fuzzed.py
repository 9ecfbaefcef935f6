"""What fuzzing begins with is accepted, and changes of it do no harm; see tests/fuzz."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, check
from tests.fuzz.seeds import seeds, write


@pytest.mark.parametrize("reader", READERS)
def test_every_seed_is_accepted_and_written_again(reader, tmp_path):
    found = list(seeds(reader))
    assert len(found) >= 5
    for data in found:
        assert check(reader, data, tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_seeds_in_another_form(reader, tmp_path):
    """And cut short: the fuzzer's own changes, a few of them."""
    rng = random.Random(12)
    found = list(seeds(reader))
    accepted = 0
    for _ in range(100):
        data = rng.choice(found)
        accepted += check(reader, mutate(reader, data, rng) or data[: rng.randrange(500)], tmp_path)
    assert 0 < accepted < 100


def changed_configuration(**fields):
    config = json.loads(next(seeds("configuration")))
    return json.dumps({**config, **fields}).replace("Infinity", "1e999").encode()


def header(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


#: Once accepted, and then written as what nobody reads, or not at all.
FOUND = {
    "an infinite number": ("configuration", changed_configuration(start=[float("inf")])),
    "half of a character in a name": (
        "safetensors",
        header({"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    ),
    "half of a character beside it": ("safetensors", header({"__metadata__": {"a": "\udfff"}})),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_fuzzing_found_is_refused(case, tmp_path):
    reader, data = FOUND[case]
    assert not check(reader, data, tmp_path)


def test_the_same_corpus_every_time(tmp_path):
    write(tmp_path / "one")
    subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", tmp_path / "two"], check=True)
    files = {path.relative_to(tmp_path / "one"): path for path in (tmp_path / "one").rglob("*")}
    assert len(files) > 50
    for name, path in files.items():
        assert path.is_dir() or path.read_bytes() == (tmp_path / "two" / name).read_bytes()
