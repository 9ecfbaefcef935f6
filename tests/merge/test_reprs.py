"""What a prompt shows of the objects that it is given."""

from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters import Adapter
from nola_edge.merge.verify import verify_checkpoint
from tests.conftest import load_all, tiny_adapter


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_adapter(here):
    adapter = Adapter.load("adapter")
    said = "NOLA rank 4, 10 + 10 coefficients, 3 modules, seed 11"
    assert repr(adapter) == f"<Adapter adapter: {said}>"
    assert repr(tiny_adapter()) == f"<Adapter in memory: {said}>"
    adapter.quantize(4).pack("small.nola")
    assert repr(Adapter.load("small.nola")) == (
        "<Adapter small.nola: NOLA rank 4, 10 + 10 coefficients of 4 bits, 3 modules, seed 11>"
    )
    assert repr(adapter.modules["layers.0.q"]) == "<Coefficients: alpha 10, beta 10>"


def test_an_adapter_with_whole_tensors():
    adapter = tiny_adapter()
    whole = {"score.weight": np.ones((2, 3), np.float32)}
    made = Adapter(adapter.config, {"q": adapter.modules["layers.0.q"]}, whole)
    assert repr(made) == (
        "<Adapter in memory: NOLA rank 4, 10 + 10 coefficients, 1 module, 1 whole tensor, seed 11>"
    )
    assert repr(made.whole_tensors) == "<TensorMapping of 1: score.weight>"


def test_a_merge_at_load(here):
    with ne.open_merged("base", "adapter") as weights:
        assert repr(weights) == "<MergedCheckpoint base: 8 tensors, 3 merged>"


def test_reports(here):
    report = ne.merge_checkpoint("base", "adapter", "out")
    assert repr(report).startswith(f"MergeReport(output={Path('out')!r}, tensors=8, ")
    assert repr(verify_checkpoint("out", "base", "adapter")) == (
        "<VerifyReport: identical, 8 tensors compared, 3 merged>"
    )
    Path("out/config.json").unlink()
    assert repr(verify_checkpoint("out", "base", "adapter")) == (
        "<VerifyReport: 0 tensor(s) and 1 other file(s) differ, 8 tensors compared, 3 merged>"
    )


def test_a_switch(here):
    switch = ne.ArraySwitch(load_all(Path("base")), "base")
    assert repr(switch) == "<ArraySwitch base: holds the base, knows no adapter>"
    switch.add("french", "adapter")
    switch.add("german", tiny_adapter(seed=2))
    switch.use("french")
    assert repr(switch) == "<ArraySwitch base: holds 'french', knows french, german>"
