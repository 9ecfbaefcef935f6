"""The cache stays within its bytes; what was used longest ago goes, what is in use stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.errors import OutputError
from nola_edge.vllm import cache as cache_module
from nola_edge.vllm.cache import LoraCache
from tests.conftest import snapshot, tiny_adapter
from tests.vllm.checks import PLENTY, entries, refused, size


@pytest.fixture
def most(make_cache, tiny):
    """A bound with room for two of a, b, c but not for three."""
    cache = make_cache()
    sizes = sorted(size(cache.get(name, tiny[0])) for name in "abc")
    cache.close()
    shutil.rmtree(cache.directory)
    assert sizes[0] > 4096
    return sizes[1] + sizes[2] + 4096


def test_the_one_used_longest_ago_goes(make_cache, tiny, most):
    first = make_cache(most)
    a, b = (first.get(name, tiny[0]) for name in "ab")
    first.get("a", tiny[0])
    first.close()
    c = make_cache(most).get("c", tiny[0])
    assert entries(first) == {a.name, c.name}
    assert not b.exists()


def test_what_is_in_use_stays(make_cache, tiny, tmp_path, most):
    first, second = make_cache(most), make_cache(most)
    a, b = first.get("a", tiny[0]), second.get("b", tiny[0])
    for cache in (first, second):
        refused(tmp_path, lambda cache=cache: cache.get("c", tiny[0]), "in use", OutputError)
    assert first.get("b", tiny[0]) == b
    second.close()  # the other still has both
    refused(tmp_path, lambda: second.get("c", tiny[0]), "raise the limit of the cache", OutputError)
    first.close()
    c = second.get("c", tiny[0])
    assert entries(first) == {b.name, c.name}
    assert not a.exists()


def test_an_adapter_that_changes_again_and_again(make_cache, adapters, tiny, tmp_path, most):
    """Requests under way may want any that its name ever gave: none of them goes."""
    cache = make_cache(most)
    given = {cache.get("a", tiny[0])}
    tiny_adapter(seed=100, r=16).save(adapters / "a", force=True)
    given.add(cache.get("a", tiny[0]))
    before = {path: snapshot(path) for path in given}
    for seed in (101, 102):
        tiny_adapter(seed=seed, r=16).save(adapters / "a", force=True)
        for user in (cache, make_cache(most)):
            refused(tmp_path, lambda user=user: user.get("a", tiny[0]), "ever given", OutputError)
    assert {path: snapshot(path) for path in given} == before
    cache.close()
    assert make_cache(most).get("a", tiny[0]).exists()
    assert size(cache.directory) <= most


def test_an_adapter_that_changes_back(make_cache, adapters, tiny, most):
    cache, other = make_cache(most), make_cache(most)
    first = cache.get("a", tiny[0])
    shutil.copytree(adapters / "a", adapters / "kept")
    tiny_adapter(seed=100, r=16).save(adapters / "a", force=True)
    second = cache.get("a", tiny[0])
    assert cache.get("kept", tiny[0]) == first  # and so two names have it
    with pytest.raises(OutputError, match="in use"):
        other.get("c", tiny[0])
    assert entries(cache) == {first.name, second.name}


def test_an_entry_larger_than_the_cache(make_cache, tiny, tmp_path):
    make_cache(PLENTY).get("a", tiny[0])
    cache = make_cache(1000)
    refused(tmp_path, lambda: cache.get("b", tiny[0]), "the cache may hold only 1000", OutputError)
    assert cache.get("a", tiny[0]).exists()  # what is there may be used


def test_what_is_not_an_entry_is_left_alone(make_cache, tiny, tmp_path, most):
    cache = make_cache(most)
    foreign = ["notes.txt", "nola-lora-mine", "0" * 40, "nola-lora-" + "0" * 31 + "g"]
    for name in foreign:
        (cache.directory / name).mkdir()
        (cache.directory / name / "precious").write_text("precious" * 1000)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("precious")
    (cache.directory / ("nola-lora-" + "0" * 32)).symlink_to(tmp_path / "elsewhere")
    before = snapshot(cache.directory), snapshot(tmp_path / "elsewhere")
    for name in "abcabc":
        user = make_cache(most)
        user.get(name, tiny[0])
        user.close()
    now = snapshot(cache.directory)
    assert before[0].items() <= now.items()
    assert snapshot(tmp_path / "elsewhere") == before[1]


@given(
    names=st.lists(st.sampled_from("abcde"), min_size=1, max_size=12),
    limit=st.floats(0.9, 3.5),
)
def test_it_is_the_least_recently_used_within_a_bound(tmp_path_factory, names, limit):
    """Against a list: what is used goes to its end, what must go goes from its front."""
    folder, base, sizes = world(tmp_path_factory)
    most = int(max(sizes.values()) * limit)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    expected: list[str] = []
    actual = {}
    for name in names:
        cache = LoraCache(folder / "adapters", folder / "cache", max_bytes=most)
        needed = sizes[name]
        if name not in expected:
            if needed > most:
                with pytest.raises(OutputError, match="may hold"):
                    cache.get(name, base)
                continue
            while sum(actual[other] for other in expected) + needed > most:
                expected.pop(0)
        else:
            expected.remove(name)
        expected.append(name)
        path = cache.get(name, base)
        actual[name] = size(path)
        cache.close()
        assert size(cache.directory) <= most
        assert len(entries(cache)) == len(expected)
    found = sorted(cache.directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [size(path) for path in found] == [actual[name] for name in expected]


WORLD = {}


def world(tmp_path_factory):
    """Five adapters of different size, made once; name -> the bytes that are reserved for it."""
    if not WORLD:
        import numpy as np

        from nola_edge import Adapter
        from nola_edge.files.checkpoint import Checkpoint
        from nola_edge.merge.plan import plan_merge
        from nola_edge.vllm.entries import Entry
        from tests.conftest import MODULES, write_safetensors

        folder = tmp_path_factory.mktemp("world")
        base = folder / "base.safetensors"
        weights = {f"{m}.weight": np.ones(s, np.float32) for m, s in MODULES.items()}
        write_safetensors(base, weights)
        (folder / "adapters").mkdir()
        sizes = {}
        for number, name in enumerate("abcde"):
            tiny_adapter(seed=number, r=8 + 3 * number).save(folder / "adapters" / name)
            with Checkpoint.open(base) as checkpoint:
                adapter = Adapter.load(folder / "adapters" / name)
                plan = plan_merge(checkpoint, ((adapter, 1.0),))
                sizes[name] = Entry.of(adapter, plan, "F32").nbytes
        WORLD.update(folder=folder, base=base, sizes=sizes)
    return WORLD["folder"], WORLD["base"], WORLD["sizes"]


def test_a_full_disk_makes_the_cache_smaller(make_cache, tiny, tmp_path, monkeypatch):
    first = make_cache()
    a = first.get("a", tiny[0])
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=4000))
    refused(tmp_path, lambda: first.get("b", tiny[0]), "the disk has only 4000", OutputError)
    first.close()
    b = make_cache().get("b", tiny[0])
    assert entries(first) == {b.name}
    assert not a.exists()


mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root")


@pytest.fixture
def small(tmp_path):
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@mounts
def test_a_disk_that_fills_up(small, adapters, tiny):
    """Noticed before anything is written."""
    cache = LoraCache(adapters, small / "cache", max_bytes=PLENTY)
    (small / "filler").write_bytes(bytes(52_000))
    with pytest.raises(OutputError, match="the disk has"):
        cache.get("a", tiny[0])
    assert not entries(cache)
    (small / "filler").unlink()
    assert cache.get("a", tiny[0]).exists()
    cache.close()


@mounts
def test_no_space_while_writing(small, adapters, tiny, monkeypatch):
    cache = LoraCache(adapters, small / "cache", max_bytes=PLENTY)
    (small / "filler").write_bytes(bytes(60_000))
    plenty = SimpleNamespace(free=PLENTY)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: plenty)
    with pytest.raises(OutputError, match="no space left on the disk; nothing was kept"):
        cache.get("a", tiny[0])
    assert not entries(cache)


@mounts
def test_a_read_only_cache(small, adapters, tiny):
    """What is in it is served, and what is not is refused."""
    warm = LoraCache(adapters, small / "cache", max_bytes=PLENTY)
    a = warm.get("a", tiny[0])
    warm.close()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    cache = LoraCache(adapters, small / "cache", max_bytes=PLENTY)
    before = snapshot(small)
    assert cache.get("a", tiny[0]) == a
    with pytest.raises(OutputError, match="Read-only"):
        cache.get("b", tiny[0])
    assert snapshot(small) == before
    cache.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(make_cache, tiny, tmp_path):
    warm = make_cache()
    a = warm.get("a", tiny[0])
    warm.directory.chmod(0o500)
    try:
        assert make_cache().get("a", tiny[0]) == a
        refused(tmp_path, lambda: make_cache().get("b", tiny[0]), "denied", OutputError)
    finally:
        warm.directory.chmod(0o700)
