"""One output per adapter: a process interrupted at any call leaves complete ones only."""

import errno
import shutil
import signal

import pytest

from nola_edge import Adapter
from tests.conftest import calls_to_try, load_all, snapshot, tiny_adapter, write_safetensors
from tests.faults import test_interrupted_merge as single

pytestmark = single.pytestmark
commands = single.commands
library = single.library


CLEARING = ("unlink", "unlinkat", "rmdir")


@pytest.fixture
def merge(commands, tiny, tmp_path):
    """Runs `nola-edge merge --each` on a file and two adapters, with a fault."""
    tensors = load_all(tiny[0])
    shutil.rmtree(tiny[0])
    kept = ("layers.1.q.weight", "norm.weight")
    write_safetensors(tmp_path / "base", {name: tensors[name] for name in kept})
    for name, seed in (("first", 3), ("second", 4)):
        adapter = tiny_adapter(seed=seed)
        Adapter(adapter.config, {"layers.1.q": adapter.modules["layers.1.q"]}).save(tmp_path / name)
    files = tmp_path / "base", tmp_path / "first"
    return single.Merge(commands, files, tmp_path, tmp_path / "second", "--each")


def check(output, complete):
    """What stands in the folder is complete; return the names."""
    if not output.exists():
        return set()
    there = {path.name for path in output.iterdir() if not path.name.startswith(".nola-edge")}
    found = snapshot(output)
    assert there in [{f"{name}.safetensors" for name in ("first", "second")[:n]} for n in range(3)]
    assert {name: found[name] for name in there} == {name: complete[name] for name in there}
    return there


def test_the_order_of_a_write(merge):
    """Both are written before either is in place; then one after the other is."""
    calls = merge.calls()
    folder = calls.index("mkdir")
    first, second = (i for i, name in enumerate(calls) if name == "renameat2")
    written = [i for i, name in enumerate(calls) if name in ("pwrite", "pwrite64", "ftruncate")]
    assert folder < min(written)
    assert max(written) < first
    for place in (folder, first, second):
        assert calls[place + 1] == "fsync_folder"
    for place in (first, second):
        assert calls[place - 1].startswith("fsync")
    assert set(calls[first:second]) == {"renameat2", "fsync", "fsync_folder", "rmdir"}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_signal_at_every_call(merge, name):
    """What stands in the folder is complete, and a second run goes on with what is missing."""
    total = merge.count()
    complete = snapshot(merge.output)
    shutil.rmtree(merge.output)
    before = snapshot(merge.folder)
    number = getattr(signal, name)
    one_of_two = 0
    for call in calls_to_try(total):
        done = merge(at=call, signal=int(number))
        assert done.returncode == -number
        one_of_two += len(check(merge.output, complete)) == 1
        if name == "SIGTERM":
            assert not list(merge.folder.rglob(".nola-edge*")), call
        else:
            merge.options += ("--skip-existing",)
            assert merge().returncode == 0
            merge.options = merge.options[:-1]
            assert snapshot(merge.output) == complete
        shutil.rmtree(merge.output, ignore_errors=True)
        assert snapshot(merge.folder) == before
    assert one_of_two > 3


def test_an_error_at_every_call(merge):
    """One line on stderr; nothing is left, or the first output and it is complete."""
    calls = merge.calls()
    complete = snapshot(merge.output)
    shutil.rmtree(merge.output)
    before = snapshot(merge.folder)
    for call, name in enumerate(calls, 1):
        if name in CLEARING:
            continue
        done = merge(at=call, errno=errno.ENOSPC)
        if done.returncode == 0:  # the copy within the kernel has a fallback
            assert snapshot(merge.output) == complete
        else:
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith("nola-edge: ")
        check(merge.output, complete)
        assert not list(merge.folder.rglob(".nola-edge*")), call
        shutil.rmtree(merge.output, ignore_errors=True)
        assert snapshot(merge.folder) == before, call
