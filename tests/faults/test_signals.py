"""Real processes that would work for a minute die soon after a signal, and leave nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nola_edge import Adapter
from tests.conftest import default_signals, snapshot, write_safetensors

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]
SHAPE = (4096, 4096)
#: No process may need that long to notice; a guard against hanging, not a measure.
PATIENCE = 30


def start_slow(*arguments, stdout=subprocess.DEVNULL):
    """Start a command on one processor and the slowest instruction set."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "NOLA_EDGE_ISA": "portable"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=be_slow,
    )


def be_slow():
    default_signals()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def start(*arguments):
    """Start a command and wait until it imports numpy."""
    process = start_slow(*arguments)
    maps = Path(f"/proc/{process.pid}/maps")
    while "_multiarray_umath" not in maps.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    return process


def ends_by(process, number):
    """Send a signal; the process must end by it, with at most a line."""
    assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    ended_by(process, number)


def ended_by(process, number):
    try:
        errors = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("deaf to the signal")
    assert process.returncode == -number
    assert len(errors.split("\n", 2)) <= 3
    assert "Traceback" not in errors
    assert "Error" not in errors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    write_safetensors(folder / "base.safetensors", {"m.weight": np.zeros(SHAPE, np.float32)})
    many = 1 << 20
    for name, r, num_basis_a, num_basis_b in (
        ("right", 16, many, 1),
        ("left", 16, 1, many),
        ("rank", 1 << 12, 1, 1),
    ):
        fresh = Adapter.create(
            {"m": SHAPE},
            r=r,
            num_basis_a=num_basis_a,
            num_basis_b=num_basis_b,
            seed=1,
            lora_alpha=1,
            basis="uniform",
        )
        ones = np.ones(num_basis_a, np.float32), np.ones(num_basis_b, np.float32)
        fresh.replace({"m": ones}).save(folder / name)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1])
def test_from_the_first_moment(inputs, tmp_path, number, delay):
    output = tmp_path / "out.safetensors"
    process = start(
        "-m", "nola_edge", "merge", inputs / "base.safetensors", inputs / "right", "-o", output
    )
    time.sleep(delay)
    ends_by(process, number)
    assert not any(tmp_path.iterdir())


#: The program of the console script, that gets Ctrl-C as it imports its n-th module.
INTERRUPTED = """
import os, sys

left, begun = int(sys.argv.pop(1)), False


def interrupt(event, arguments):
    global left, begun
    if event == "exec":
        begun = begun or arguments[0].co_filename.endswith("nola_edge/__init__.py")
    elif event == "import" and begun and not arguments[0].startswith("nola_edge"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 2)


sys.addaudithook(interrupt)
from nola_edge.__main__ import main
main()
"""


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 30, 100, 200])
def test_in_every_import(inputs, tmp_path, count):
    """Before our first line Python reports Ctrl-C in its own way; from then on we do."""
    base, adapter = inputs / "base.safetensors", inputs / "right"
    process = start_slow(
        "-c", INTERRUPTED, count, "merge", base, adapter, "-o", tmp_path / "out.safetensors"
    )
    ended_by(process, signal.SIGINT)
    assert not any(tmp_path.iterdir())


#: The program that gets a signal when its command is done, or refused, or when Python ends.
LEAVING = """
import atexit, os, sys
import nola_edge.cli.main as command_line

place, number = sys.argv.pop(1), int(sys.argv.pop(1))


def interrupted(*arguments):
    os.kill(os.getpid(), number)
    real(*arguments)


if place == "exit":
    atexit.register(os.kill, os.getpid(), number)
else:
    real = getattr(command_line, place)
    setattr(command_line, place, interrupted)
from nola_edge.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("place", "name"), [("_exit", "left"), ("_fail", "none"), ("exit", "left")]
)
def test_on_the_way_out(inputs, number, place, name):
    """Not a traceback, whose exit status is that of a verdict."""
    process = start_slow("-c", LEAVING, place, int(number), "inspect", inputs / name)
    ended_by(process, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("adapter", ["right", "left", "rank"])
@pytest.mark.parametrize("command", [["merge"], ["export", "lora"]], ids=" ".join)
def test_in_every_kind_of_work(inputs, tmp_path, number, adapter, command):
    """Expanding a factor on the main thread, rows of the other on workers, and merging."""
    if command == ["export", "lora"]:
        if adapter == "rank":
            pytest.skip("expands few basis matrices, which is quick")
        arguments = [*command, inputs / adapter, "--base", inputs / "base.safetensors"]
    else:
        arguments = [*command, inputs / "base.safetensors", inputs / adapter]
    before = snapshot(inputs)
    output = tmp_path / ("out.safetensors" if command == ["merge"] else "out")
    process = start("-m", "nola_edge", *arguments, "-o", output)
    time.sleep(1.5)
    ends_by(process, number)
    assert not any(tmp_path.iterdir())
    assert snapshot(inputs) == before


@pytest.mark.parametrize(
    "call",
    [
        "ne.expand(np.ones(1 << 20, 'f'), seed=1, stream=2, shape=(64, 1024), basis='uniform')",
        "ne.merge_(np.zeros((4096, 4096), 'f'), np.ones((4096, 1 << 12), 'f'), "
        "np.ones((1 << 12, 4096), 'f'))",
        "ne.project(np.ones((4096, 4096), 'f'), seed=1, stream=2, num_basis=4096, basis='uniform')",
    ],
)
def test_a_call_of_a_function(call):
    """Ctrl-C in a program of one's own is the KeyboardInterrupt that it always is."""
    program = f"""
import numpy as np, nola_edge as ne
try:
    print("calling", flush=True)
    {call}
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    with start_slow("-c", program, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "calling\n"
        time.sleep(1.5)  # for the array to be made; sooner is right as well
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 7
