"""Work that threads share: done once each, within memory, and ended by the first failure."""

import threading
import time
from functools import partial

import pytest

from nola_edge.workers import Workers


def together(count, nbytes, threads):
    """Return the most pieces of so many bytes that were under way at once."""
    lock, here, most = threading.Lock(), [0], [0]

    def work():
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.05)
        with lock:
            here[0] -= 1

    with Workers(threads) as workers:
        workers.each((work, nbytes) for _ in range(count))
    return most[0]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_piece_is_done_once(threads):
    done = []
    with Workers(threads) as workers:
        workers.each((partial(done.append, n), 1 << 20) for n in range(1000))
        workers.each((partial(done.append, n), 1 << 20) for n in range(1000, 1100))
    assert sorted(done) == list(range(1100))


def test_pieces_wait_for_memory_and_the_largest_comes_alone():
    assert together(8, 0, 4) > 1
    assert together(8, 15 << 20, 4) == 2
    assert together(4, 1 << 40, 4) == 1


def failing_piece(done):
    for number in range(10_000):
        yield (lambda: 1 // 0) if number == 100 else partial(take_time, done, number), 0


def failing_iterator(done):
    for number in range(100):
        yield partial(done.append, number), 0
    raise ZeroDivisionError


def take_time(done, number):
    done.append(number)
    time.sleep(1e-3)


@pytest.mark.parametrize("jobs", [failing_piece, failing_iterator])
def test_a_failure_ends_what_the_others_would_take(jobs):
    done = []
    with pytest.raises(ZeroDivisionError), Workers(4) as workers:
        workers.each(jobs(done))
    assert 90 < len(done) < 5000
