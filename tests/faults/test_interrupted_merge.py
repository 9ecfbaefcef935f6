"""Real processes, interrupted at every single call that changes the disk."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nola_edge as ne
from tests.conftest import calls_to_try, load_all, snapshot, tiny_adapter, write_safetensors
from tests.faults.commands import Commands

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library"),
]
SOURCE = Path(__file__).with_name("fault.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("fault") / "fault.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def commands(library):
    with Commands(library) as commands:
        yield commands


class Merge:
    """Runs `nola-edge merge` on the tiny base with a fault."""

    def __init__(self, commands, tiny, tmp_path, *options):
        self.base, self.adapter = tiny
        self.folder = tmp_path
        is_folder = "--each" in options or self.base.is_dir()
        self.output = tmp_path / f"out{'' if is_folder else self.base.suffix}"
        self.commands = commands
        self.options = options

    @property
    def arguments(self):
        return ["merge", self.base, self.adapter, "-o", self.output, "--threads", "1", "-q",
                *self.options]  # fmt: skip

    def __call__(self, **fault):
        return self.commands.run(self.arguments, fault)

    def calls(self, **fault):
        """The names of the calls that change the disk, in order, up to the clearing up."""
        log = self.folder / "log"
        done = self(log=log, **fault)
        assert done.returncode == 0, done.stderr
        names = log.read_text().split()
        log.unlink()
        while names[-1] in ("unlink", "unlinkat", "rmdir"):
            names.pop()
        return names

    def count(self):
        count = len(self.calls())
        assert count > 10
        return count

    def inputs(self):
        return snapshot(self.base), snapshot(self.adapter)


def leftovers(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".nola-edge")]


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_the_order_of_a_write(commands, tiny, tmp_path, options):
    """All is written, then all is forced to disk, then one rename, then its folder."""
    if options:
        ne.merge_checkpoint(tiny[0], tiny_adapter(seed=3), tmp_path / "out")
    merge = Merge(commands, tiny, tmp_path, *options)
    names = merge.calls()
    assert names[-2:] == ["renameat2", "fsync_folder"]
    assert names.count("renameat2") == 1
    assert "rename" not in names
    first = names.index("fsync")
    files = sum(path.is_file() for path in merge.output.rglob("*"))
    folders = 1 + sum(path.is_dir() for path in merge.output.rglob("*"))
    assert names[first:-2] == ["fsync"] * files + ["fsync_folder"] * folders
    assert not {"unlink", "unlinkat", "rmdir"} & set(names)


@pytest.mark.parametrize("options", [[], ["--force"]])
@pytest.mark.parametrize("single", [False, True])
def test_without_renameat2(commands, tiny, tmp_path, options, single):
    """A file system that cannot rename with flags still gets a complete output, and only once."""
    base, adapter = tiny
    if single:
        base = tmp_path / "one.safetensors"
        write_safetensors(base, load_all(tiny[0]))
    if options:
        ne.merge_checkpoint(base, tiny_adapter(seed=3), tmp_path / "out")
    merge = Merge(commands, (base, adapter), tmp_path, *options)
    done = merge(name="renameat2", errno=errno.EINVAL)
    assert done.returncode == 0, done.stderr
    assert ne.verify_checkpoint(merge.output, base, adapter)
    assert not leftovers(tmp_path)
    if not options:
        before = snapshot(tmp_path)
        assert merge(name="renameat2", errno=errno.EINVAL).returncode == 2
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_at_every_call(commands, tiny, tmp_path, name):
    """The output is absent or complete; the next run clears what a killed one left.

    What SIGINT does SIGTERM does too, so a third of the calls will do.
    """
    merge = Merge(commands, tiny, tmp_path)
    inputs = merge.inputs()
    total = merge.count()
    complete = snapshot(merge.output)
    shutil.rmtree(merge.output)
    number = getattr(signal, name)
    absent = 0
    calls = calls_to_try(total)[:: 3 if name == "SIGINT" else 1]
    for call in calls:
        done = merge(at=call, signal=int(number))
        assert done.returncode == -number
        if merge.output.exists():
            assert snapshot(merge.output) == complete
            shutil.rmtree(merge.output)
        else:
            absent += 1
        if name != "SIGKILL":
            assert not leftovers(tmp_path), call
    assert absent >= len(calls) - 2
    assert merge.inputs() == inputs
    assert merge().returncode == 0
    assert not leftovers(tmp_path)
    assert snapshot(merge.output) == complete


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_call(commands, tiny, tmp_path, code):
    """One line on stderr, exit status 2, nothing left."""
    merge = Merge(commands, tiny, tmp_path)
    total = merge.count()
    shutil.rmtree(merge.output)
    before = snapshot(tmp_path)
    for call in calls_to_try(total):
        done = merge(at=call, errno=code)
        if done.returncode == 0:  # the copy within the kernel has a fallback
            shutil.rmtree(merge.output)
            continue
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("nola-edge: ")
        if call < total:
            assert snapshot(tmp_path) == before, call
        elif merge.output.exists():
            shutil.rmtree(merge.output)  # the rename was done, its fsync was not


def test_a_killed_replacement_keeps_the_old_or_has_the_new(commands, tiny, tmp_path):
    merge = Merge(commands, tiny, tmp_path, "--force")
    ne.merge_checkpoint(tiny[0], tiny_adapter(seed=3), merge.output)
    old = snapshot(merge.output)
    total = merge.count()
    new = snapshot(merge.output)
    shutil.rmtree(merge.output)
    ne.merge_checkpoint(tiny[0], tiny_adapter(seed=3), merge.output)
    kept = 0
    calls = calls_to_try(total)
    for call in calls:
        merge(at=call, signal=int(signal.SIGKILL))
        now = snapshot(merge.output)
        assert now in (old, new)
        kept += now == old
    assert kept >= len(calls) - 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root")
@pytest.mark.parametrize("filler", [50_000, 65_000])
def test_a_full_disk(tiny, tmp_path, filler):
    """Too full for the output, noticed while writing; and, noticed before, full."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (mount / "filler").write_bytes(bytes(filler))
        done = subprocess.run(
            [sys.executable, "-m", "nola_edge", "merge", *tiny, "-o", mount / "out"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "disk" in done.stderr
        assert done.stderr.count("\n") == 1
        assert os.listdir(mount) == ["filler"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_read_only_base_is_enough(tiny, tmp_path):
    base, adapter = tiny
    for path in [base, *base.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    ne.merge_checkpoint(base, adapter, tmp_path / "out")
    assert ne.verify_checkpoint(tmp_path / "out", base, adapter).identical
