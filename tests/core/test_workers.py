"""Work that threads share: done once each, within memory, and ended by the first failure."""

import signal
import threading
import time
from functools import partial

import pytest

from nola_edge import workers as module
from nola_edge.workers import Workers


def together(count, nbytes, threads, wanted):
    """Return the most pieces of so many bytes that were under way at once; so many meet."""
    lock, here, most = threading.Lock(), [0], [0]
    meeting = threading.Barrier(wanted)

    def work():
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        meeting.wait(60)
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
    assert together(8, 0, 4, wanted=4) == 4
    assert together(8, 15 << 20, 4, wanted=2) == 2
    assert together(4, 1 << 40, 4, wanted=1) == 1


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


def test_a_failure_ends_what_the_others_would_take():
    done = []
    with pytest.raises(ZeroDivisionError), Workers(4) as workers:
        workers.each(failing_piece(done))
    assert set(range(100)) <= set(done)
    assert len(done) < 9_000


def test_a_failure_to_make_the_next_piece():
    done = []
    with pytest.raises(ZeroDivisionError), Workers(4) as workers:
        workers.each(failing_iterator(done))
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize("startable", [0, 1])
def test_threads_that_cannot_be_made(monkeypatch, startable):
    """The others do the work and, if there is none, the caller's; failures end it all the same."""
    real, started = module.start_new_thread, []

    def start(*arguments):
        if len(started) == startable:
            raise RuntimeError("can't start new thread")
        started.append(real(*arguments))

    monkeypatch.setattr(module, "start_new_thread", start)
    done = []
    with Workers(4) as workers:
        workers.each((partial(done.append, n), 0) for n in range(100))
        for n in range(100, 200):
            workers.submit(done.append, n)
    assert sorted(done) == list(range(200))
    done.clear()
    started.clear()
    with pytest.raises(ZeroDivisionError), Workers(4) as workers:
        workers.each(failing_piece(done))
    assert len(done) < 9_000


@pytest.mark.parametrize("times", [1, 5])
def test_a_signal_does_not_shorten_the_wait_for_what_has_begun(times):
    """Whatever a piece writes to is the caller's, who takes it back after an interruption."""
    begun, ended, interrupts = threading.Event(), [], []

    def interrupt(*_):
        interrupts.append(None)
        if len(interrupts) == times:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def work():
        begun.set()
        while len(interrupts) < times:
            time.sleep(1e-3)
        time.sleep(0.05)
        ended.append(None)

    def submit():
        with Workers(2) as workers:
            workers.submit(work)
            begun.wait()
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            submit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert len(ended) == 1
