"""What a server was given is not absent for a moment, whatever happens to it or to the server."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

import pytest

from nola_edge.errors import NolaEdgeError
from nola_edge.vllm.locks import try_lock
from tests.conftest import snapshot
from tests.vllm.checks import entries
from tests.vllm.test_cache import cut, linked_out, other_rank

CHANGES = {"rename", "replace", "remove", "unlink", "rmdir", "mkdir"}


@pytest.fixture
def before_changes():
    """A list of functions, called before each call of Python's that changes a folder."""
    functions = []

    def profile(_, event, called):
        if event == "c_call" and called.__module__ == "posix" and called.__name__ in CHANGES:
            for function in functions:
                function()

    former = sys.getprofile()
    sys.setprofile(profile)
    yield functions
    sys.setprofile(former)


@pytest.mark.parametrize("harm", [cut, other_rank, linked_out])
def test_an_entry_is_never_absent_while_it_is_made_again(make_cache, tiny, harm, before_changes):
    """An engine that does not find it ends."""
    path = make_cache().get("a", tiny[0])
    good = snapshot(path)
    harm(path)
    seen = []
    before_changes.append(lambda: seen.append({file.name for file in path.iterdir()}))
    assert make_cache().get("a", tiny[0]) == path
    before_changes.clear()
    assert len(seen) > 3
    assert all(names == set(good) for names in seen)
    assert snapshot(path) == good


@contextlib.contextmanager
def descriptors_left(count):
    """So many files may be opened at once, and then no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        last = -1
        while not last > 200:  # so that none is free below
            last = stack.enter_context(open(os.devnull)).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", range(6))
def test_a_server_without_descriptors_loses_nothing(make_cache, tiny, count):
    """It cannot look at an entry then, which is no reason to give it up or to make it anew."""
    cache, other = make_cache(), make_cache()
    path = cache.get("a", tiny[0])
    good, made = snapshot(path), (path / "adapter_config.json").stat().st_ino
    with descriptors_left(count):
        for user in (cache, other):
            with contextlib.suppress(NolaEdgeError, OSError):
                assert user.get("a", tiny[0]) == path
    other.close()
    assert (snapshot(path), (path / "adapter_config.json").stat().st_ino) == (good, made)
    assert entries(cache) == {path.name}
    assert try_lock(path, shared=False) is None
    assert cache.get("a", tiny[0]) == path
