"""The program, interrupted at every call that changes the disk, and at random moments."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from tests.conftest import calls_to_try, default_signals, snapshot, tiny_adapter, write_safetensors
from tests.faults.test_interrupted_merge import leftovers, library
from tests.gguf.test_merge import adapter_of, arrays_of, write

__all__ = ["library"]

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library"),
    pytest.mark.skipif("NOLA_PROGRAM" in os.environ and "qemu" in os.environ["NOLA_PROGRAM"],
                       reason="cannot preload a library under qemu"),
]  # fmt: skip


class Merge:
    """Runs `nola merge` on the tiny base with a fault."""

    def __init__(self, nola, library, tiny, folder, *options):
        self.nola = nola
        self.library = library
        self.base = tiny[0]
        self.adapter = folder / "adapter.nola"
        tiny_adapter().pack(self.adapter)
        self.folder = folder
        self.output = folder / "out"
        self.options = options

    def __call__(self, **fault):
        variables = {f"NOLA_FAULT_{name.upper()}": str(value) for name, value in fault.items()}
        return self.nola(
            *self.command, "-o", self.output, "--threads", "1", "-q",
            *self.options, LD_PRELOAD=str(self.library), **variables,
        )  # fmt: skip

    @property
    def command(self):
        return "merge", self.base, self.adapter

    def found(self):
        """What the output holds."""
        return snapshot(self.output)

    def remove(self):
        shutil.rmtree(self.output)

    def calls(self):
        """The names of the calls that change the disk, in order, up to the clearing up."""
        log = self.folder / "log"
        done = self(log=log)
        assert done.returncode == 0, done
        names = log.read_text().split() if log.exists() else []
        if not names:
            pytest.skip("is linked statically")
        log.unlink()
        while names[-1] in ("unlink", "unlinkat", "rmdir"):
            names.pop()
        return names


class Export(Merge):
    """Runs `nola export gguf-lora` with a fault."""

    def __init__(self, nola, library, folder):
        self.nola = nola
        self.library = library
        self.base = write(folder / "base.gguf", arrays_of("F16"))
        self.adapter = folder / "adapter.nola"
        adapter_of().pack(self.adapter)
        self.folder = folder
        self.output = folder / "lora.gguf"
        self.options = ()

    @property
    def command(self):
        return "export", "gguf-lora", self.adapter, "--base", self.base

    def found(self):
        return self.output.read_bytes()

    def remove(self):
        self.output.unlink()


class GgufMerge(Export):
    """Runs `nola merge` into a GGUF file with a fault."""

    @property
    def command(self):
        return "merge", self.base, self.adapter


@pytest.fixture
def merge(nola, library, tiny, tmp_path):
    return Merge(nola, library, tiny, tmp_path)


@pytest.fixture(params=["merge", "export", "GGUF merge"])
def run(request, nola, library, tmp_path):
    """Each command that writes."""
    if request.param == "merge":
        return request.getfixturevalue("merge")
    return (Export if request.param == "export" else GgufMerge)(nola, library, tmp_path)


def test_the_order_of_a_write(merge):
    names = merge.calls()
    assert names[-2:] == ["renameat2", "fsync_folder"]
    assert names.count("renameat2") == 1
    first = names.index("fsync")
    files = sum(path.is_file() for path in merge.output.rglob("*"))
    folders = 1 + sum(path.is_dir() for path in merge.output.rglob("*"))
    assert names[first:-2] == ["fsync"] * files + ["fsync_folder"] * folders


def test_without_renameat2(merge):
    assert merge(name="renameat2", errno=errno.EINVAL).returncode == 0
    assert ne.verify_checkpoint(merge.output, merge.base, merge.adapter).identical
    before = snapshot(merge.folder)
    assert merge(name="renameat2", errno=errno.EINVAL).returncode == 2
    assert snapshot(merge.folder) == before
    merge.options = ("--force",)
    assert merge(name="renameat2", errno=errno.EINVAL).returncode == 0
    assert snapshot(merge.folder) == before


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_at_every_call(run, name):
    """The output is absent or complete; the next run clears what a killed one left.

    What SIGINT does SIGTERM does too, so a third of the calls will do.
    """
    total = len(run.calls())
    complete = run.found()
    run.remove()
    before = snapshot(run.folder)
    number = getattr(signal, name)
    for call in calls_to_try(total)[:: 3 if name == "SIGINT" else 1]:
        done = run(at=call, signal=int(number))
        if run.output.exists():
            assert run.found() == complete
            run.remove()
        else:
            assert done.returncode == -number
        if name != "SIGKILL":
            assert snapshot(run.folder) == before, call
    assert run().returncode == 0
    assert not leftovers(run.folder)
    assert run.found() == complete


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_call(run, code):
    """One line on stderr, exit status 2, nothing left."""
    total = len(run.calls())
    run.remove()
    before = snapshot(run.folder)
    for call in calls_to_try(total):
        done = run(at=call, errno=code)
        if done.returncode == 0:  # the copy within the kernel has a fallback
            run.remove()
            continue
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        if call < total:
            assert snapshot(run.folder) == before, call
        elif run.output.exists():
            run.remove()  # the rename was done, its fsync was not


def test_a_killed_replacement_keeps_the_old_or_has_the_new(merge):
    merge.options = ("--force",)
    ne.merge_checkpoint(merge.base, tiny_adapter(seed=3), merge.output)
    old = snapshot(merge.output)
    total = len(merge.calls())
    new = snapshot(merge.output)
    shutil.rmtree(merge.output)
    ne.merge_checkpoint(merge.base, tiny_adapter(seed=3), merge.output)
    for call in calls_to_try(total):
        merge(at=call, signal=int(signal.SIGKILL))
        assert snapshot(merge.output) in (old, new)
    assert merge().returncode == 0
    assert not leftovers(merge.folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ended_at_random_moments(nola, tmp_path, number):
    """Also what either tool's killed run leaves, the next one clears."""
    shapes = {f"layers.{i}": (1024, 2048) for i in range(8)}
    base = tmp_path / "base.safetensors"
    write_safetensors(base, {f"{n}.weight": np.ones(s, np.float16) for n, s in shapes.items()})
    trained_adapter(shapes, r=16, num_basis=512).pack(tmp_path / "adapter.nola")
    before = snapshot(tmp_path)
    out = tmp_path / "new" / "out.safetensors"
    command = [*nola.command, "merge", base, tmp_path / "adapter.nola", "-o", out, "-q"]
    rng = random.Random(int(number))
    killed_late = []
    for _ in range(6):
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
        )
        time.sleep(rng.random() * 0.3)
        process.send_signal(number)
        begin = time.monotonic()
        said = process.communicate()[1]
        assert time.monotonic() - begin < 10
        if process.returncode == 0:
            out.unlink()
            out.parent.rmdir()
        elif number != signal.SIGKILL:
            assert process.returncode == -number
            assert said == "" or "nothing incomplete was kept" in said
            assert snapshot(tmp_path) == before
        elif out.exists():  # in its place already, and so complete
            killed_late.append(out.read_bytes())
            out.unlink()
    ne.merge_checkpoint(base, tmp_path / "adapter.nola", out)
    wanted = out.read_bytes()
    assert all(found == wanted for found in killed_late)
    assert os.listdir(out.parent) == ["out.safetensors"]
    out.unlink()
    assert nola(*command[len(nola.command) :]).returncode == 0
    assert out.read_bytes() == wanted


def test_what_python_left_is_cleared(nola, tiny, tmp_path):
    """A temporary of a dead process, by either tool's name for it."""
    from nola_edge.files.temporary import temporary_path

    tiny_adapter().pack(tmp_path / "adapter.nola")
    child = subprocess.run(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from nola_edge.files.temporary import *; "
         "p = temporary_path(Path(sys.argv[1])); p.mkdir(); (p / 'new').mkdir(); print(p)",
         tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    mine = temporary_path(tmp_path / "out")
    mine.mkdir()
    assert Path(child.stdout.strip()).exists()
    assert nola("merge", tiny[0], tmp_path / "adapter.nola", "-o", tmp_path / "out").returncode == 0
    assert leftovers(tmp_path) == [mine]
