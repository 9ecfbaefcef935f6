"""A child of fork() has none of OpenMP's threads, and must not wait for them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import _core


def work() -> bytes:
    values = np.arange(1, 65, dtype=np.float32)
    a = ne.expand(values, seed=1, stream=2, shape=(256, 1024), num_threads=2)
    weight = np.ones((256, 1024), np.float32)
    ne.merge_(weight, np.ones((256, 4), np.float32), a[:4].copy(), num_threads=2)
    gradient = ne.project(a, seed=1, stream=2, num_basis=64, num_threads=2)
    return a.tobytes() + weight.tobytes() + gradient.tobytes()


def ends_well(child: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_gives_the_same_bits():
    expected = work()
    child = os.fork()
    if child == 0:
        os._exit(0 if work() == expected else 3)
    ends_well(child)


OTHER = """
#include <omp.h>
int run(void) {
    int sum = 0;
#pragma omp parallel num_threads(3) reduction(+ : sum)
    sum += 1;
    return sum;
}
"""
FORKS_AFTER_ANOTHER = """
import ctypes, os, sys
import tests.core.test_fork as test

assert ctypes.CDLL(sys.argv[1]).run() == 3
child = os.fork()
if child == 0:
    os._exit(0 if test.work() else 3)
test.ends_well(child)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(not _core.openmp, reason="needs OpenMP")
def test_a_child_of_a_process_in_which_only_another_library_used_threads(tmp_path):
    (tmp_path / "other.c").write_text(OTHER)
    other = tmp_path / "other.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-fopenmp", "-o", other, tmp_path / "other.c"], check=True
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", FORKS_AFTER_ANOTHER, other]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
