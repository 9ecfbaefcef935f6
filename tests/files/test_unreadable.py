"""What the system does not let us read is refused in one line that names it, like all else."""

import contextlib
import dataclasses
import gc
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.errors import FormatError
from nola_edge.files.checkpoint import Checkpoint
from tests.conftest import MODULES, tiny_adapter, write_sharded

AS_NOBODY = """
import os, sys
from nola_edge import Adapter, NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint

if os.geteuid() == 0:  # who may read everything
    try:
        os.setuid(65534)
    except OSError as error:
        sys.exit(f"cannot become another user: {error}")
kind, path = sys.argv[1:]
try:
    Adapter.load(path) if kind == "adapter" else Checkpoint.open(path)
except NolaEdgeError as error:
    print(error)
"""


@pytest.fixture
def folders():
    """A base and an adapter in a folder that every user of this machine can read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        weights = {f"{m}.weight": np.ones(shape, np.float32) for m, shape in MODULES.items()}
        write_sharded(folder / "base", weights, 2)
        adapter = tiny_adapter()
        config = dataclasses.replace(adapter.config, modules_to_save=("head",))
        whole = {"head.weight": np.ones((2, 40), np.float32)}
        Adapter(config, adapter.modules, whole).save(folder / "adapter")
        yield folder


@pytest.mark.parametrize(
    "unreadable",
    [
        "adapter",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "base",
        "base/model.safetensors.index.json",
        "base/model-00002-of-00002.safetensors",
    ],
)
def test_what_is_not_permitted(folders, unreadable):
    path = folders / unreadable
    path.chmod(0o444 if path.is_dir() else 0)  # a folder's files are seen then, and cannot be had
    kind = path.relative_to(folders).parts[0]
    command = [sys.executable, "-c", AS_NOBODY, kind, str(folders / kind)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    path.chmod(0o755)
    if done.stderr.startswith("cannot become another user"):
        pytest.skip(done.stderr.strip())
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(str(path))
    assert "Permission denied" in done.stdout


@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_a_parent_that_may_not_be_searched(folders, kind):
    locked = folders / "locked"
    locked.mkdir()
    (folders / kind).rename(locked / kind)
    locked.chmod(0)
    command = [sys.executable, "-c", AS_NOBODY, kind, str(locked / kind)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    locked.chmod(0o755)
    if done.stderr.startswith("cannot become another user"):
        pytest.skip(done.stderr.strip())
    assert done.stderr == ""
    assert done.stdout == f"{locked / kind}: cannot be opened: Permission denied\n"


@contextlib.contextmanager
def free_descriptors(count):
    """Let so many more files be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 50, hard))
    gc.collect()  # closes now what it would close meanwhile
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_too_many_open_files(folders, count):
    """An adapter with tensors of its own keeps its file open: more than fit cannot be loaded."""
    kept = []

    def load_all():
        while len(kept) <= count:
            kept.append(Adapter.load(folders / "adapter"))

    def refused():  # one for each use, since it holds what the last one raised
        return pytest.raises(FormatError, match=r"^/\S+: cannot be opened: Too many open files; ")

    with free_descriptors(count), refused():
        load_all()
    for adapter in [*kept, Adapter.load(folders / "adapter")]:
        assert (adapter.whole_tensors["head.weight"] == 1).all()
    with free_descriptors(min(count, 1)), refused():
        Checkpoint.open(folders / "base")
