"""A switch that is refused, interrupted, or finds another base: what the arrays then hold."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    ArgumentError,
    ChangedError,
    MismatchError,
    NolaEdgeError,
    NotFiniteError,
)
from tests.conftest import load_all, tiny_adapter, write_safetensors
from tests.lora_folders import factors, write_lora
from tests.merge.checks import bits


def test_a_switch_that_fails_changes_nothing(switch):
    switch.use("second")
    before = bits(switch.arrays)
    huge = {
        name: (c.alpha * np.float32(1e22), c.beta * np.float32(1e22))
        for name, c in tiny_adapter().modules.items()
    }
    switch.add("huge", tiny_adapter().replace(huge))
    with pytest.raises(NotFiniteError):
        switch.use("huge")
    assert bits(switch.arrays) == before
    assert switch.active == "second"
    with pytest.raises(ArgumentError, match="'third' is not known; add it first"):
        switch.use("third")
    switch.add("stranger", trained_adapter({"layers.9.q": (24, 40)}, r=2, num_basis=4))
    with pytest.raises(MismatchError):
        switch.use("stranger")
    switch.add("nowhere", "no-such-folder")
    with pytest.raises(NolaEdgeError):
        switch.use("nowhere")
    assert bits(switch.arrays) == before
    switch.use("first")


def test_an_interruption_puts_back_what_was_there(switch, monkeypatch):
    switch.use("second")
    before = bits(switch.arrays)
    memory, calls = type(switch)._memory, []

    def interrupted(self, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return memory(self, name)

    monkeypatch.setattr(type(switch), "_memory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch.use("first")
    assert len(calls) > 2
    assert bits(switch.arrays) == before
    assert switch.active == "second"


@pytest.fixture
def alarms():
    """A function that has this process interrupted after so many seconds."""
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


# One that comes within a callback of the garbage collector, as hypothesis has one, is lost there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_at_any_moment(alarms, tmp_path):
    """Whenever it comes, while threads start too, the weights are what the switch says."""
    shapes = {f"l.{number}.q": (256, 256) for number in range(12)}
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.standard_normal(s, np.float32) for name, s in shapes.items()}
    write_safetensors(tmp_path / "base.safetensors", weights)
    for seed, name in enumerate(("first", "second")):
        write_lora(tmp_path / name, factors(shapes, seed=seed))
    arrays = load_all(tmp_path / "base.safetensors")
    with ne.ArraySwitch(arrays, tmp_path / "base.safetensors", num_threads=4) as switch:
        wanted = {}
        for name in ("first", "second"):
            switch.add(name, tmp_path / name)
            switch.use(name)
            wanted[name] = bits(arrays)
        seconds, interrupts = 0.01, 0
        for number in range(3000):
            begin = time.perf_counter()
            try:
                alarms(max(1e-5, seconds * (number % 100) / 100))
                switch.use("second" if switch.active == "first" else "first")
                alarms(0)
                seconds = time.perf_counter() - begin  # as long as a switch takes just now
            except KeyboardInterrupt:
                interrupts += 1
            assert bits(arrays) == wanted[switch.active]
            if interrupts == 150:
                break
    assert interrupts == 150


def test_an_interruption_after_the_last_weight(switch, monkeypatch):
    switch.use("second")
    before, write = bits(switch.arrays), type(switch)._write

    def interrupted(self, plan, names):
        write(self, plan, names)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(switch), "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch.use("first")
    assert bits(switch.arrays) == before
    assert switch.active == "second"


def test_an_interruption_before_anything_is_put_back(switch, monkeypatch):
    """Nobody runs the model then, and the next switch writes all that it left."""
    base = bits(switch.arrays)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(switch), "_memory", at_call(2, interrupt))
    monkeypatch.setattr(type(switch), "_put_back", interrupt)
    with pytest.raises(KeyboardInterrupt):
        switch.use("first")
    monkeypatch.undo()
    with pytest.raises(ChangedError, match=r"was cut short .*; call use again"), switch.running():
        pass
    switch.use(None)
    assert bits(switch.arrays) == base
    with switch.running():
        pass


def overwrite(base):
    """Write other numbers in place: same name, same size."""
    files = [base] if base.is_file() else sorted(base.glob("*.safetensors"))
    for path in files:
        held = bytearray(path.read_bytes())
        held[-2000:] = bytes(byte ^ 1 for byte in held[-2000:])
        path.write_bytes(held)
        os.utime(path, ns=(0, 1))


def replace(base):
    """Put other files into the place of those that are open."""
    shutil.copytree(base, base.with_name("other"))
    overwrite(base.with_name("other"))
    for path in base.glob("*.safetensors"):
        os.replace(base.with_name("other") / path.name, path)


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_base_that_changed_between_two_uses(switch, tiny, change):
    """The weights stay those of the last switch, and go on being usable."""
    switch.use("first")
    before = bits(switch.arrays)
    change(tiny[0])
    for selection in ("second", None, "first"):
        with pytest.raises(ChangedError, match="changed while it was read"):
            switch.use(selection)
        assert bits(switch.arrays) == before
    assert switch.active == "first"
    with switch.running():
        pass


def at_call(count, do):
    """Return an ArraySwitch._memory that does something at its n-th call, and at each later."""
    memory, calls = ne.ArraySwitch._memory, []

    def spied(self, name):
        calls.append(name)
        if len(calls) >= count:
            do()
        return memory(self, name)

    return spied


def assert_lost(switch):
    """What is known to be garbage is not handed out."""
    for refused in (lambda: switch.use(None), lambda: switch.active, switch.running().__enter__):
        with pytest.raises(ChangedError, match="load them again and make a new switch"):
            refused()


def test_a_base_that_changes_while_weights_are_written(switch, tiny, monkeypatch):
    switch.use("second")
    monkeypatch.setattr(ne.ArraySwitch, "_memory", at_call(2, lambda: overwrite(tiny[0])))
    with pytest.raises(ChangedError, match="load them again"):
        switch.use("first")
    monkeypatch.undo()
    assert_lost(switch)
    with ne.ArraySwitch(switch.arrays, tiny[0]) as again:
        again.add("first", tiny_adapter())
        with pytest.raises(MismatchError, match="differs from the base"):
            again.use("first")


def switch_while_the_base_becomes_shorter(where, base):
    """In a process of its own, which a mapping that is read would end."""
    order = "F" if where == "_store" else "C"
    arrays = {name: np.array(values, order=order) for name, values in load_all(base).items()}
    before, method = bits(arrays), getattr(ne.ArraySwitch, where)

    def shorten(self, *arguments):
        os.truncate(base, 4096)
        return method(self, *arguments)

    switch = ne.ArraySwitch(arrays, base, num_threads=2)
    switch.add("one", trained_adapter(dict.fromkeys("qv", (600, 512)), r=2, num_basis=4))
    if where == "_store":
        switch.use("one")
    setattr(ne.ArraySwitch, where, shorten)
    with pytest.raises(ChangedError):
        switch.use(None if where == "_store" else "one")
    if where == "_holds":
        assert switch.active is None
        assert bits(arrays) == before
    else:
        assert_lost(switch)


@pytest.mark.parametrize("where", ["_holds", "_memory", "_store"])
def test_a_base_that_becomes_shorter(where, tmp_path):
    """While weights are compared with it, merged from it, or set back to it in another order."""
    rng = np.random.default_rng(1)
    tensors = {f"{m}.weight": rng.standard_normal((600, 512)).astype(np.float32) for m in "qv"}
    write_safetensors(tmp_path / "base.safetensors", tensors)
    child = multiprocessing.get_context("spawn").Process(
        target=switch_while_the_base_becomes_shorter,
        args=(where, tmp_path / "base.safetensors"),
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_an_interruption_while_weights_are_put_back(switch, monkeypatch):
    switch.use("second")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(ne.ArraySwitch, "_memory", at_call(2, interrupt))
    with pytest.raises(KeyboardInterrupt):
        switch.use("first")
    monkeypatch.undo()
    assert_lost(switch)


def test_arrays_that_are_not_the_base(tiny):
    base, adapter = tiny
    for spoil, message in (
        (
            lambda a: a.__setitem__("layers.0.q.weight", a["layers.0.q.weight"] * 2),
            "differs from the base",
        ),
        (lambda a: a.pop("layers.0.q.weight"), "is not among the arrays"),
        (lambda a: a.__setitem__("layers.0.q.weight", np.zeros((24, 40))), "the base has bfloat16"),
        (lambda a: setattr(a["layers.0.q.weight"].flags, "writeable", False), "read-only"),
    ):
        arrays = load_all(base)
        spoil(arrays)
        before = bits(arrays)
        with ne.ArraySwitch(arrays, base) as switch:
            switch.add("one", adapter)
            with pytest.raises(MismatchError, match=message):
                switch.use("one")
        assert bits(arrays) == before
