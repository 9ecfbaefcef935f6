"""Several processes share a cache, and one may be killed at any call that changes the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nola_edge.errors import OutputError
from nola_edge.vllm.cache import LoraCache
from nola_edge.vllm.locks import locked
from tests.conftest import default_signals, snapshot
from tests.faults.commands import with_faults
from tests.faults.test_interrupted_merge import library  # noqa: F401, a fixture
from tests.vllm.checks import PLENTY, entries, size

pytestmark = pytest.mark.kill

#: Gets an adapter and says what it expanded. With "stop" it ends its writing half-way, and waits.
WORKER = """
import sys
from pathlib import Path
import nola_edge.adapters.nola_files, nola_edge.export.lora as lora
import nola_edge.vllm.cache as module

adapters, directory, most, base, names, *stop = sys.argv[1:]
real = module.export_lora
def export(adapter, *rest, **options):
    print("expanding", Path(adapter.path).name, flush=True)
    return real(adapter, *rest, **options)
module.export_lora = export
if stop:
    def half(path, tensors):
        path.write_bytes(bytes(1000))
        print("half", flush=True)
        sys.stdin.read()
    lora.write_tensors = half
cache = module.LoraCache(adapters, directory, max_bytes=int(most))
print("ready", flush=True)
for name in names.split(","):
    path = cache.get(name, base)
    print("got", path, flush=True)
sys.stdin.read()
"""

#: And has a child, which lives as long as its standard input.
FORKING = f"""{WORKER.removesuffix("sys.stdin.read()" + chr(10))}
import os
if not os.fork():
    print("forked", flush=True)
sys.stdin.read()
"""


class World:
    """The arguments that the processes share."""

    def __init__(self, adapters, base, directory):
        self.adapters, self.base, self.directory = adapters, base, directory
        self.started = []

    def command(self, names, most=PLENTY, *stop, script=WORKER):
        arguments = [self.adapters, self.directory, str(most), self.base, names, *stop]
        return [sys.executable, "-c", script, *map(str, arguments)]

    def start(self, names, *stop, script=WORKER):
        process = subprocess.Popen(
            self.command(names, PLENTY, *stop, script=script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )
        self.started.append(process)
        return process

    def cache(self, most=PLENTY):
        return LoraCache(self.adapters, self.directory, max_bytes=most)


@pytest.fixture
def world(adapters, tiny, tmp_path):
    made = World(adapters, tiny[0], tmp_path / "cache")
    yield made
    for process in made.started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def until(process, word):
    """What a process says up to a line that begins with a word, and that line."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(word):
            return lines
    raise AssertionError(f"ended without {word!r}: {lines}")


def test_processes_expand_once(world):
    processes = [world.start("a,b,a") for _ in range(3)]
    said = []
    for process in processes:
        for _ in range(3):
            said += until(process, "got")
    assert said.count("expanding a") == 1
    assert said.count("expanding b") == 1
    got = [line for line in said if line.startswith("got")]
    assert len(got) == 9
    assert len(set(got)) == 2 == len(os.listdir(world.directory))


def test_one_is_killed_in_the_middle_and_another_waits(world):
    first = world.start("a", "stop")
    until(first, "half")
    assert [name for name in os.listdir(world.directory) if name.endswith(".partial")]
    second = world.start("a")
    until(second, "ready")
    first.kill()
    first.wait()
    assert until(second, "got")[:-1] == ["expanding a"]
    cache = world.cache()
    path = cache.get("a", world.base)
    assert entries(cache) == {path.name}
    cache.close()


def test_what_a_killed_process_left_goes_with_the_next_expansion(world):
    first = world.start("a", "stop")
    until(first, "half")
    first.kill()
    first.wait()
    assert len(os.listdir(world.directory)) == 1
    cache = world.cache()
    path = cache.get("b", world.base)
    assert entries(cache) == {path.name}
    cache.close()


def test_in_use_by_another_process(world):
    """Until that ends, however it ends."""
    server = world.start("a")
    a = until(server, "got")[-1].split(" ", 1)[1]
    cache = world.cache()
    most = size(world.directory) + 4096
    cache.close()
    other = world.cache(most)
    with pytest.raises(OutputError, match="in use by running servers"):
        other.get("b", world.base)
    assert os.path.exists(a)
    server.kill()
    server.wait()
    b = other.get("b", world.base)
    assert entries(other) == {b.name}
    other.close()


def test_in_use_by_what_was_forked_from_the_one_that_asked(world):
    """That may be killed: an engine that is left reads the files until it ends too."""
    parent = world.start("a", script=FORKING)
    a = until(parent, "got")[-1].split(" ", 1)[1]
    until(parent, "forked")
    most = size(world.directory) + 4096
    parent.kill()
    parent.wait()
    other = world.cache(most)
    with pytest.raises(OutputError, match="in use by running servers"):
        other.get("b", world.base)
    parent.stdin.close()  # the child ends, and what it has open is closed one after the other
    assert not parent.stdout.read()
    with locked(Path(a)):
        pass
    b = other.get("b", world.base)
    assert entries(other) == {b.name}
    other.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library")
def test_killed_at_every_call(library, world):  # noqa: F811
    """While one entry is removed to make room for another: every entry is complete then."""
    cache = world.cache()
    a, b = cache.get("a", world.base), cache.get("b", world.base)
    good = {path.name: snapshot(path) for path in (a, b)}
    cache.close()
    most = size(b) + 4096
    shutil.rmtree(b)
    warm = world.directory.with_name("warm")
    shutil.copytree(world.directory, warm)

    def run(**fault):
        shutil.rmtree(world.directory)
        shutil.copytree(warm, world.directory)
        variables = {f"NOLA_FAULT_{name.upper()}": str(value) for name, value in fault.items()}
        return subprocess.run(
            world.command("b", most),
            env={**with_faults(library), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            preexec_fn=default_signals,
        )

    log = world.directory.with_name("log")
    assert run(log=log).returncode == 0
    names = log.read_text().split()
    assert {"rename", "renameat2", "fsync", "mkdir"} <= set(names)
    for call in range(1, len(names) + 1):
        done = run(at=call, signal=int(signal.SIGKILL))
        assert done.returncode == -signal.SIGKILL
        for name in os.listdir(world.directory):
            assert name.endswith(".partial") or snapshot(world.directory / name) == good[name]
        assert sum(not name.endswith(".partial") for name in os.listdir(world.directory)) <= 1
        after = world.cache(most)
        for adapter, path in (("b", b), ("a", a)):
            assert after.get(adapter, world.base) == path
            assert snapshot(path) == good[path.name]
            assert size(world.directory) <= most
            after.close()
        assert entries(after) == {a.name}
