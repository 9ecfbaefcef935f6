"""A child of fork() has none of OpenMP's threads, and must not wait for them."""

import os
import signal
import time

import numpy as np
import pytest

import nola_edge as ne


def work() -> bytes:
    values = np.arange(1, 65, dtype=np.float32)
    a = ne.expand(values, seed=1, stream=2, shape=(256, 1024), num_threads=2)
    weight = np.ones((256, 1024), np.float32)
    ne.merge_(weight, np.ones((256, 4), np.float32), a[:4].copy(), num_threads=2)
    gradient = ne.project(a, seed=1, stream=2, num_basis=64, num_threads=2)
    return a.tobytes() + weight.tobytes() + gradient.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_gives_the_same_bits():
    expected = work()
    child = os.fork()
    if child == 0:
        os._exit(0 if work() == expected else 3)
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
