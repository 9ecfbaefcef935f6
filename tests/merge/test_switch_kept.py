"""Factors that a switch keeps for the next one: the bits stay."""

from __future__ import annotations

import shutil

import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    ArgumentError,
    NolaEdgeError,
)
from nola_edge.merge import known_adapters
from tests.conftest import MODULES, load_all, tiny_adapter
from tests.merge.checks import bits


def test_factors_are_kept_and_the_bits_stay(switch, monkeypatch):
    """Going back and forth expands nothing twice; coefficients that changed are expanded anew."""
    expanded = []
    expand = ne.Adapter._expand
    monkeypatch.setattr(
        ne.Adapter, "_expand", lambda self, *a, **k: expanded.append(a[1]) or expand(self, *a, **k)
    )
    states = {}
    for name in ("first", "second"):
        switch.use(name)
        states[name] = bits(switch.arrays)
    kept, count = switch.kept_bytes, len(expanded)
    assert kept > 0
    for name in ("first", None, "second", "first"):
        switch.use(name)
        assert name is None or bits(switch.arrays) == states[name]
    assert (switch.kept_bytes, len(expanded)) == (kept, count)


def test_an_adapter_is_read_again_only_where_its_files_have_changed(switch, tmp_path, monkeypatch):
    read = []
    load = known_adapters.load_adapter
    monkeypatch.setattr(
        known_adapters, "load_adapter", lambda path: read.append(path.name) or load(path)
    )
    for name in ("second", None, "second", "first", "second"):
        switch.use(name)
    assert read == ["second"]
    (tmp_path / "second" / "adapter_config.json").touch()
    switch.use("second")
    assert read == ["second"] * 2
    shutil.rmtree(tmp_path / "second")
    before = bits(switch.arrays)
    with pytest.raises(NolaEdgeError, match="second"):
        switch.use("second")
    assert bits(switch.arrays) == before


def test_few_adapters_of_many_are_kept(tiny, tmp_path):
    base, _ = tiny
    part = {"layers.1.q": MODULES["layers.1.q"]}
    with ne.ArraySwitch(load_all(base), base) as switch:
        for seed in range(20):
            trained_adapter(part, r=2, num_basis=7, seed=seed).save(tmp_path / str(seed))
            switch.add(str(seed), tmp_path / str(seed))
            switch.use(str(seed))
        assert len(switch._known._read) == 8
        switch.remove("19")
        assert len(switch._known._read) == 7


def test_an_adapter_that_was_trained_on_has_new_factors(switch, tmp_path):
    switch.use("second")
    before = bits(switch.arrays)
    part = {"layers.1.q": MODULES["layers.1.q"]}
    newer = trained_adapter(part, r=2, num_basis=7, seed=5)
    newer = newer.replace({m: (c.alpha * 2, c.beta) for m, c in newer.modules.items()})
    newer.save(tmp_path / "second", force=True)
    switch.use("second")
    assert bits(switch.arrays) != before
    with ne.ArraySwitch(load_all(switch._base.path), switch._base.path) as fresh:
        fresh.add("newer", newer)
        fresh.use("newer")
        assert bits(switch.arrays) == bits(fresh.arrays)


@pytest.mark.parametrize("keep_bytes", [0, 300, 1000])
def test_what_does_not_fit_is_not_kept(tiny, keep_bytes):
    base, _ = tiny
    with (
        ne.ArraySwitch(load_all(base), base) as usual,
        ne.ArraySwitch(load_all(base), base, keep_bytes=keep_bytes) as small,
    ):
        for switch in (usual, small):
            switch.add("first", tiny_adapter())
            switch.add("second", tiny_adapter(seed=77))
        for name in ("first", "second", "first", None, "second"):
            usual.use(name)
            small.use(name)
            assert bits(small.arrays) == bits(usual.arrays)
            assert small.kept_bytes <= keep_bytes
        assert usual.kept_bytes > 1000


@pytest.mark.parametrize("keep_bytes", [-1, 1.5, None, "1"])
def test_a_budget_is_a_number_of_bytes(tiny, keep_bytes):
    base, _ = tiny
    with pytest.raises(ArgumentError, match=r"^keep_bytes: "):
        ne.ArraySwitch(load_all(base), base, keep_bytes=keep_bytes)
