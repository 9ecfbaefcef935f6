"""The demonstration: shipped files, what the decoder says, and that none of it needs torch."""

from __future__ import annotations

import json
import subprocess
import sys

import nola_edge as ne
from nola_edge.demo.speech import BASE, DATA, speak

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from dataclasses import asdict
from nola_edge.demo.speech import speak
print(json.dumps([asdict(s) for s in speak(1)]))
"""


def test_shipped_files_are_small_and_belong_together():
    assert (BASE / "model.safetensors").stat().st_size <= 2_000_000
    adapters = sorted(DATA.glob("*.nola"))
    assert [path.name for path in adapters] == ["read.nola", "say.nola"]
    seeds = set()
    for path in adapters:
        assert path.stat().st_size <= 10_000
        adapter = ne.Adapter.load(path)
        seeds.add(adapter.config.seed)
        with ne.open_merged(BASE, path) as tensors:
            assert len(tensors.plan.merges) == len(adapter.modules)
    assert len(seeds) == 2


def test_adapters_teach_the_decoder():
    speeches = speak(4)
    assert len(speeches) == 8
    for speech in speeches:
        assert speech.before != speech.after
    said = [speech for speech in speeches if speech.adapter == "say.nola"]
    assert all("NAME" in speech.after for speech in said)
    read = [speech for speech in speeches if speech.adapter == "read.nola"]
    assert all(speech.after.startswith("name : NAME") for speech in read)


def test_it_speaks_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True
    )
    alone = json.loads(done.stdout)
    here = speak(1)
    assert [s["after"] for s in alone] == [s.after for s in here]
