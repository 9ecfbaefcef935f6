"""Merging into GGUF, interrupted at every single call that changes the disk."""

from __future__ import annotations

import errno
import signal
import sys

import pytest

from tests.conftest import snapshot
from tests.faults.test_interrupted_merge import Merge, commands, leftovers, library  # noqa: F401
from tests.gguf.test_merge import adapter_of, arrays_of, write

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library"),
]


@pytest.fixture
def merge(commands, tmp_path):  # noqa: F811
    """A merge with the inputs in one folder and the output in another."""
    inputs, work = tmp_path / "inputs", tmp_path / "work"
    inputs.mkdir()
    work.mkdir()
    adapter_of().save(inputs / "adapter")
    base = write(inputs / "base.gguf", arrays_of("F16"))
    return Merge(commands, (base, inputs / "adapter"), work)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_signal_at_every_call(merge, tmp_path, name):
    """The output is absent or complete; the next run clears what a killed one left."""
    before = snapshot(tmp_path / "inputs")
    total = merge.count()
    complete = merge.output.read_bytes()
    merge.output.unlink()
    number = getattr(signal, name)
    absent = 0
    for call in range(1, total + 1):
        assert merge(at=call, signal=int(number)).returncode == -number
        if merge.output.exists():
            assert merge.output.read_bytes() == complete
            merge.output.unlink()
        else:
            absent += 1
        if name != "SIGKILL":
            assert not leftovers(merge.folder), call
    assert absent >= total - 2
    assert merge().returncode == 0
    assert not leftovers(merge.folder)
    assert merge.output.read_bytes() == complete
    assert snapshot(tmp_path / "inputs") == before


def test_a_full_disk_at_every_call(merge, tmp_path):
    """One line on stderr, exit status 2, nothing left."""
    total = merge.count()
    merge.output.unlink()
    before = snapshot(tmp_path)
    for call in range(1, total + 1):
        done = merge(at=call, errno=errno.ENOSPC)
        if done.returncode != 0:  # the copy within the kernel has a fallback
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
        if done.returncode == 0 or call == total:  # the rename was done, its fsync was not
            merge.output.unlink(missing_ok=True)
        assert snapshot(tmp_path) == before, call
