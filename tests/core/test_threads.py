"""A number of threads that cannot be had costs speed, never the process."""

import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import ArgumentError
from nola_edge.workers import Workers
from tests.conftest import MODULES, snapshot, tiny_adapter, write_safetensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")

CHILD = """
import hashlib, os, resource, sys, threading
import numpy as np
import nola_edge as ne
import nola_edge.merge.open

count, limit, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def work(count):
    a = ne.expand(np.arange(1, 65, dtype=np.float32), seed=1, stream=2, shape=(256, 1024),
                  num_threads=count)
    weight = np.ones((256, 1024), np.float32)
    ne.merge_(weight, np.ones((256, 4), np.float32), a[:4].copy(), num_threads=count)
    gradient = ne.project(a, seed=1, stream=2, num_basis=64, num_threads=count)
    found = [a.tobytes(), weight.tobytes(), gradient.tobytes()]
    with ne.open_merged(folder + "/base", folder + "/adapter", num_threads=count) as merged:
        return found + [merged[name].tobytes() for name in merged]


if limit == "threads":
    if os.geteuid() == 0:  # whom no limit on processes binds
        try:
            os.setuid(65534)
        except OSError as error:
            sys.exit(f"cannot become another user: {error}")
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
elif limit == "memory":
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + (100 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
if limit == "threads":
    try:
        threading.Thread(target=int).start()
        sys.exit("the limit does not bind")
    except RuntimeError:
        pass
print(hashlib.sha256(b"".join(work(count))).hexdigest())
"""


@pytest.fixture(scope="module")
def readable():
    """A base and an adapter that the users of this machine can all read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        weights = {f"{m}.weight": np.ones(shape, np.float32) for m, shape in MODULES.items()}
        write_safetensors(folder / "base", weights)
        tiny_adapter().save(folder / "adapter")
        yield folder


def digest(readable, count, limit):
    command = [sys.executable, "-c", CHILD, str(count), limit, str(readable)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.stderr.startswith("cannot become another user"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("limit", ["none", "memory", "threads"])
@pytest.mark.parametrize("count", [2, 10_000])
def test_threads_that_cannot_be_made_are_done_without(readable, limit, count):
    assert digest(readable, count, limit) == digest(readable, 1, "none")


@pytest.fixture(params=[0, 1, 2])
def exhausted(request, monkeypatch):
    """A limit that is met in the middle of the work: only so many workers can be started."""
    start, left = threading.Thread.start, [request.param]

    def refuse(thread):
        if thread.name.startswith("nola-edge"):
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("exhausted")
def test_threads_that_cannot_be_made_any_more(tiny, tmp_path):
    done = []
    with Workers(4) as workers:
        for number in range(100):
            workers.submit(done.append, number)
        workers.each((partial(done.append, number), 0) for number in range(100, 200))
    assert sorted(done) == list(range(200))
    with pytest.raises(ZeroDivisionError), Workers(4) as workers:
        workers.submit(divmod, 1, 0)
    ne.merge_checkpoint(*tiny, tmp_path / "out", num_threads=4)
    assert ne.verify_checkpoint(tmp_path / "out", *tiny, num_threads=4).identical


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", 1 << 16])
def test_a_number_that_is_none_is_refused_everywhere(tiny, tmp_path, wrong):
    base, adapter = tiny
    merged = tmp_path / "merged"
    ne.merge_checkpoint(base, adapter, merged)
    before = snapshot(tmp_path)
    calls = [
        lambda: ne.merge_checkpoint(base, adapter, tmp_path / "out", num_threads=wrong),
        lambda: ne.merge_each(base, [adapter], tmp_path / "each", num_threads=wrong),
        lambda: ne.verify_checkpoint(merged, base, adapter, num_threads=wrong),
        lambda: dict(ne.open_merged(base, adapter, num_threads=wrong)),
        lambda: ne.ArraySwitch({}, base, num_threads=wrong),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match=r"^num_threads: [^\n]*$"):
            call()
    assert snapshot(tmp_path) == before
