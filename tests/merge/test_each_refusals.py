"""What ``merge_each`` refuses, and leaves as it was."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    MismatchError,
    NolaEdgeError,
    NotFiniteError,
    OutputError,
)
from nola_edge.merge.many import groups
from tests.conftest import snapshot, tiny_adapter
from tests.merge.each import one_by_one, seeds


def refused(tiny, tmp_path, adapters, message, error, output=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        ne.merge_each(tiny[0], adapters, output or tmp_path / "out", **options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([], "at least one adapter is needed"),
        ({}, "at least one adapter is needed"),
        ({"x": []}, "at least one adapter is needed"),
        ([None], "None is neither an Adapter nor a path"),
        (3, "3 is neither an Adapter nor a path"),
        ({"x": 0.5}, "a weight belongs in a pair"),
        ([("adapter", "0.5")], "is not a number"),
        ([tiny_adapter()], "made in memory has no name"),
        ({"": "adapter"}, "not a plain name"),
        ({"a/b": "adapter"}, "not a plain name"),
        ({"..": "adapter"}, "not a plain name"),
        ({".hidden": "adapter"}, "not a plain name"),
        ({"a\nb": "adapter"}, "not a plain name"),
        ({"x" * 250: "adapter"}, "not a plain name"),
        ({3: "adapter"}, "not a plain name"),
        (["adapter", "sub/adapter"], "adapter and sub/adapter would both be written to 'adapter'"),
        ([("adapter", 0.5), ("adapter", 1)], "would both be written to 'adapter'"),
    ],
)
def test_what_has_no_name_or_no_adapter(tiny, tmp_path, monkeypatch, adapters, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    shutil.copytree(tiny[1], tmp_path / "sub" / "adapter")
    refused(tiny, tmp_path, adapters, message, ArgumentError)


@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_every_process_refuses_names_alike(tiny, tmp_path, shard):
    refused(tiny, tmp_path, [tiny[1]] * 2, "would both be written", ArgumentError, shard=shard)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_all_adapters_are_checked_first(tiny, tmp_path, monkeypatch, memory):
    """One that does not fit, in whatever group, and nothing is written for the others."""
    monkeypatch.setattr(groups, "GROUP_BYTES", memory)
    wrong = trained_adapter({"absent": (4, 4)}, seed=1)
    adapters = {"a": tiny_adapter(), "b": tiny_adapter(seed=2), "wrong": wrong}
    refused(tiny, tmp_path, adapters, "have no weight here", MismatchError)
    refused(tiny, tmp_path, [tiny[1], tmp_path / "none"], "does not exist", AdapterError)


def test_a_merge_that_is_not_finite(tiny, tmp_path):
    """It shows while writing: no output of the group is kept, and the adapter is named."""
    adapter = tiny_adapter()
    loud = {
        m: (c.alpha * np.float32(1e25), c.beta * np.float32(1e25))
        for m, c in adapter.modules.items()
    }
    adapter.replace(loud).save(tmp_path / "loud")
    adapters = [tiny[1], tmp_path / "loud"]
    refused(tiny, tmp_path, adapters, f"adapter {tmp_path}/loud", NotFiniteError)


def test_a_failure_keeps_the_groups_before(tiny, tmp_path, monkeypatch):
    adapter = tiny_adapter()
    loud = {
        m: (c.alpha * np.float32(1e25), c.beta * np.float32(1e25))
        for m, c in adapter.modules.items()
    }
    adapters = {"a": adapter, "b": adapter.replace(loud), "c": tiny_adapter(seed=4)}
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    with pytest.raises(NotFiniteError):
        ne.merge_each(tiny[0], adapters, tmp_path / "out")
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], {"a": adapter}, tmp_path / "single")


def test_a_base_that_changes_meanwhile(tiny, tmp_path):
    shard = tiny[0] / "model-00001-of-00003.safetensors"
    with pytest.raises(NolaEdgeError, match="changed while"):
        ne.merge_each(
            tiny[0], seeds(2), tmp_path / "out", progress=lambda _: os.utime(shard, ns=(1, 1))
        )
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter"}


def test_existing_outputs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    ne.merge_each(tiny[0], {"a4": tiny_adapter(seed=9)}, tmp_path / "out")
    refused(tiny, tmp_path, seeds(5), "a4: exists already", OutputError)
    assert len(ne.merge_each(tiny[0], seeds(5), tmp_path / "out", force=True)) == 5
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], seeds(5), tmp_path / "single")


def test_force_spares_what_is_no_output(tiny, tmp_path):
    (tmp_path / "out" / "a1").mkdir(parents=True)
    (tmp_path / "out" / "a1" / "notes.txt").write_text("precious")
    message = (
        "a1: holds notes.txt, which is not part of such an output, so --force does not replace it"
    )
    refused(tiny, tmp_path, seeds(2), message, OutputError, force=True)
    message = "a1: exists but is not a result of this merge (has neither"
    refused(tiny, tmp_path, seeds(2), message, OutputError, skip_existing=True)
    refused(
        tiny, tmp_path, seeds(2), "contradicts force", ArgumentError, force=True, skip_existing=True
    )


def test_what_is_there_is_skipped(tiny, tmp_path):
    ne.merge_each(tiny[0], dict(list(seeds(4).items())[1:3]), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    reports = ne.merge_each(tiny[0], seeds(4), tmp_path / "out", skip_existing=True)
    assert [report.output.name for report in reports] == ["a0", "a3"]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], seeds(4), tmp_path / "single")
    assert ne.merge_each(tiny[0], seeds(4), tmp_path / "out", skip_existing=True) == ()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("base", "lies inside the input"),
        ("base/new", "lies inside the input"),
        ("adapter/new", "lies inside the input"),
        (".", "adapter: is an input"),
        ("adapter/adapter_config.json/out", "adapter_config.json is not a folder"),
        ("adapter/adapter_config.json", "is a file"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_where_outputs_cannot_be(tiny, tmp_path, place, message, force):
    output = tmp_path / place
    refused(tiny, tmp_path, [tiny[1]], message, OutputError, output=output, force=force)


def test_outputs_beside_the_inputs(tiny, tmp_path):
    ne.merge_each(tiny[0], {"beside": tiny[1]}, tmp_path)
    assert ne.verify_checkpoint(tmp_path / "beside", *tiny).identical


def test_an_adapter_of_another_share_is_no_place_for_outputs(tiny, tmp_path):
    adapters = {"a": tiny_adapter(), "adapter_config.json": tiny[1]}
    refused(
        tiny, tmp_path, adapters, "lies inside", OutputError, output=tiny[1] / "out", shard="0/2"
    )


def test_too_little_space_for_all(tiny, tmp_path, monkeypatch):
    with ne.open_merged(*tiny) as lazy:
        size = lazy.plan.base.nbytes
    free = SimpleNamespace(total=0, used=0, free=3 * size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(tiny, tmp_path, seeds(3), f"3 outputs need {3 * size} bytes", OutputError)
    assert len(ne.merge_each(tiny[0], seeds(2), tmp_path / "out")) == 2


@pytest.mark.parametrize("given", [[("one",)], {"a": ()}, [("one", 1.0, 2.0)]])
def test_what_is_no_pair_is_refused(given, tiny, tmp_path):
    with pytest.raises(ArgumentError, match="is not a pair"):
        ne.merge_each(tiny[0], given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
