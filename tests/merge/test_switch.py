"""Switching arrays between adapters: every bit of a merged checkpoint, and back."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import (
    ArgumentError,
    ChangedError,
    MismatchError,
    NolaEdgeError,
    NolaEdgeWarning,
    NotFiniteError,
)
from nola_edge.merge import known_adapters, windows
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.lora_folders import PREFIX, factors, write_lora


@pytest.fixture
def switch(tiny, tmp_path):
    """A switch over the tiny base's arrays that knows two adapters of different modules."""
    base, _ = tiny
    with ne.ArraySwitch(load_all(base), base) as made:
        made.add("first", tiny_adapter())
        part = {name: MODULES[name] for name in ("layers.1.q",)}
        trained_adapter(part, r=2, num_basis=7, seed=5).save(tmp_path / "second")
        made.add("second", tmp_path / "second")
        yield made


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def test_each_state_is_that_of_a_merged_checkpoint(switch, tiny, tmp_path):
    base, _ = tiny
    before, files = bits(switch.arrays), snapshot(base)
    wanted = {}
    for name, adapters in {
        "first": tiny_adapter(),
        "second": tmp_path / "second",
        "both": [(tiny_adapter(), 0.7), (tmp_path / "second", 0.3)],
    }.items():
        ne.merge_checkpoint(base, adapters, tmp_path / f"merged-{name}")
        wanted[name] = bits(load_all(tmp_path / f"merged-{name}"))
    both = [("first", 0.7), ("second", 0.3)]
    for selection, state in [
        ("first", wanted["first"]), ("second", wanted["second"]), (None, before),
        (both, wanted["both"]), ("second", wanted["second"]), ("second", wanted["second"]),
        ("first", wanted["first"]), (None, before), (None, before),
    ]:  # fmt: skip
        switch.use(selection)
        assert switch.active == selection
        assert bits(switch.arrays) == state
    assert snapshot(base) == files


def test_a_scalar_is_a_tensor(tmp_path):
    """As CLIP's logit_scale, which an adapter may bring whole."""
    arrays = {"q.weight": np.ones((24, 40), np.float32), "scale": np.array(2, np.float32)}
    write_safetensors(tmp_path / "base.safetensors", arrays)
    tensors = {**factors({"q": (24, 40)}), f"{PREFIX}scale": np.array(5, np.float32)}
    write_lora(tmp_path / "adapter", tensors, modules_to_save=["scale"])
    scale = arrays["scale"]
    with ne.ArraySwitch(arrays, tmp_path / "base.safetensors") as switch:
        switch.add("one", tmp_path / "adapter")
        for name, expected in (("one", 5), (None, 2), ("one", 5)):
            switch.use(name)
            assert scale == expected
        assert arrays["scale"] is scale
    with ne.ArraySwitch(arrays, tmp_path / "base.safetensors") as switch:
        switch.add("one", tmp_path / "adapter")
        arrays["q.weight"][:] = 1
        with pytest.raises(MismatchError, match="scale: in memory differs from the base"):
            switch.use("one")


@pytest.mark.parametrize("strip_bytes", [8 << 20, 1], ids=["rows", "strips"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_many_windows_of_a_matrix(dtype, strip_bytes, tmp_path, monkeypatch):
    """Of some rows, and of some columns too; their bits are those of one window."""
    values = np.random.default_rng(6).standard_normal((61, 200)).astype(numpy_dtype(dtype))
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter"
    write_safetensors(base, {"q.weight": values})
    write_lora(adapter, factors({"q": values.shape}))
    with ne.open_merged(base, adapter) as merged:
        expected = merged["q.weight"]
    monkeypatch.setattr(windows, "BLOCK_BYTES", 8 << 10)
    monkeypatch.setattr(windows, "_STRIP_BYTES", strip_bytes)
    with ne.ArraySwitch({"q.weight": values}, base) as switch:
        switch.add("one", adapter)
        switch.use("one")
    assert values.tobytes() == expected.tobytes()


def test_only_what_adapters_change_is_touched(switch):
    for name, array in switch.arrays.items():
        array.flags.writeable = name.removesuffix(".weight") in MODULES
    switch.use("first")
    switch.use(None)
    del switch.arrays["embed.weight"]
    switch.use("first")


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
        begin = time.perf_counter()
        switch.use("first")
        seconds, interrupts = 1.5 * (time.perf_counter() - begin), 0
        for number in range(300):
            try:
                alarms(max(1e-5, seconds * number / 300))
                switch.use("second" if switch.active == "first" else "first")
                alarms(0)
            except KeyboardInterrupt:
                interrupts += 1
            assert bits(arrays) == wanted[switch.active]
    assert interrupts > 50


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


def test_names(switch):
    assert switch.names == ["first", "second"]
    with pytest.raises(ArgumentError, match="first is the name of another adapter"):
        switch.add("first", "elsewhere")
    switch.use("second")
    switch.remove("second")
    assert switch.names == ["first"]
    with pytest.raises(ArgumentError):
        switch.remove("second")
    switch.use(None)


@pytest.mark.parametrize(
    "given", [{"first": 1, "second": 1}, ["first", "second"], [("first", 1), "second"]]
)
def test_several_are_given_as_to_a_merge(switch, given):
    both = [("first", 1.0), ("second", 1.0)]
    switch.use(both)
    wanted = bits(switch.arrays)
    switch.use(None)
    switch.use(given)
    assert bits(switch.arrays) == wanted
    assert switch.active == both


@pytest.mark.parametrize("given", [[], {}, ()])
def test_no_adapter_is_the_base(switch, given):
    before = bits(switch.arrays)
    switch.use("first")
    switch.use(given)
    assert bits(switch.arrays) == before
    assert switch.active is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "adapter: 3 is not the name of an adapter"),
        (("first", 0.5), "adapter: 0.5 is not the name of an adapter; a weight belongs in a pair"),
        ([("first", "0.5")], "first: weight: '0.5' is not a number"),
        ([("first", 10**400)], "first: weight: is too large for a float"),
        ([("first", 0.5, 1)], "adapter: ('first', 0.5, 1) is not a pair (adapter, weight)"),
        ([tiny_adapter()], "adapter: <Adapter in memory"),
        ({"first", "second"}, "adapter: is a set, which has no order"),
        ({"third": 1.0}, "adapter: 'third' is not known"),
    ],
)
def test_what_is_no_selection_changes_nothing(switch, given, message):
    before = bits(switch.arrays)
    with pytest.raises(ArgumentError) as caught:
        switch.use(given)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()
    assert bits(switch.arrays) == before
    assert switch.active is None


def test_a_relative_path_is_of_the_folder_where_it_was_added(switch, tmp_path, monkeypatch):
    trained_adapter(MODULES, r=2, num_basis=7, seed=6).save(tmp_path / "third")
    (tmp_path / "elsewhere").mkdir()
    trained_adapter(MODULES, r=2, num_basis=7, seed=8).save(tmp_path / "elsewhere" / "third")
    monkeypatch.chdir(tmp_path)
    switch.add("third", "third")
    switch.use("third")
    wanted = bits(switch.arrays)
    switch.use(None)
    monkeypatch.chdir(tmp_path / "elsewhere")
    switch.use("third")
    assert bits(switch.arrays) == wanted


def test_an_id_on_the_hub_is_no_path(switch):
    switch.add("far", "owner/name")
    with pytest.raises(NolaEdgeError, match=r"^owner/name: does not exist"):
        switch.use("far")


def test_nobody_sees_half_a_switch(switch):
    """Readers in running() see one state or the other, while another thread switches."""
    states = {}
    for name in ("first", "second"):
        switch.use(name)
        states[name] = bits(switch.arrays)
    wrong, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            with switch.running(), switch.running():
                if bits(switch.arrays) != states[switch.active]:
                    wrong.append(switch.active)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for name in states:
            switch.use(name)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_a_running_thread_cannot_switch(switch):
    with switch.running(), pytest.raises(ArgumentError, match=r"inside running\(\)"):
        switch.use("first")
    switch.use("first")


def test_a_selection_is_copied_and_a_closed_switch_says_so(switch):
    selection = [("first", 0.5)]
    switch.use(selection)
    selection[0] = ("second", 9.0)
    assert switch.active == [("first", 0.5)]
    switch.close()
    with pytest.raises(ArgumentError, match="was closed"):
        switch.use("second")


def test_columns_of_one_array(tiny):
    """Views of a fused buffer lie among each other, and no element is another's."""
    base, adapter = tiny
    arrays = load_all(base)
    names = [name for name in arrays if name.endswith(".q.weight")]
    fused = np.concatenate([arrays[name] for name in names], axis=1)
    views = np.split(fused, len(names), axis=1)
    arrays.update(zip(names, views, strict=True))
    with ne.ArraySwitch(load_all(base), base) as apart:
        apart.add("one", adapter)
        apart.use("one")
    with ne.ArraySwitch(arrays, base) as switch:
        switch.add("one", adapter)
        switch.use("one")
        for name in names:
            assert np.array_equal(arrays[name], apart.arrays[name])
        switch.use(None)
    assert np.array_equal(fused, np.concatenate([load_all(base)[n] for n in names], axis=1))


@pytest.mark.parametrize("other", ["layers.1.q.weight", "embed.weight", "not in the base"])
@pytest.mark.parametrize("part", [slice(None), slice(3, 5), slice(None, None, -1)], ids=str)
def test_two_names_of_the_same_memory(tiny, other, part):
    """Also where no adapter changes the other: it would be changed all the same."""
    base, adapter = tiny
    arrays = load_all(base)
    arrays[other] = arrays["layers.0.q.weight"][part]
    with ne.ArraySwitch(arrays, base) as switch:
        switch.add("one", adapter)
        with pytest.raises(MismatchError, match="is the same memory as"):
            switch.use("one")


def test_factors_are_kept_and_the_bits_stay(switch, monkeypatch):
    """Going back and forth expands nothing twice; coefficients that changed are expanded anew."""
    expanded = []
    expand = ne.Adapter._expand
    monkeypatch.setattr(
        ne.Adapter, "_expand", lambda self, *a, **k: expanded.append(a[1]) or expand(self, *a, **k)
    )
    states = {}
    for name in ("first", "second"):
        switch.use(name)
        states[name] = bits(switch.arrays)
    kept, count = switch.kept_bytes, len(expanded)
    assert kept > 0
    for name in ("first", None, "second", "first"):
        switch.use(name)
        assert name is None or bits(switch.arrays) == states[name]
    assert (switch.kept_bytes, len(expanded)) == (kept, count)


def test_an_adapter_is_read_again_only_where_its_files_have_changed(switch, tmp_path, monkeypatch):
    read = []
    load = known_adapters.load_adapter
    monkeypatch.setattr(
        known_adapters, "load_adapter", lambda path: read.append(path.name) or load(path)
    )
    for name in ("second", None, "second", "first", "second"):
        switch.use(name)
    assert read == ["second"]
    (tmp_path / "second" / "adapter_config.json").touch()
    switch.use("second")
    assert read == ["second"] * 2
    shutil.rmtree(tmp_path / "second")
    before = bits(switch.arrays)
    with pytest.raises(NolaEdgeError, match="second"):
        switch.use("second")
    assert bits(switch.arrays) == before


def test_few_adapters_of_many_are_kept(tiny, tmp_path):
    base, _ = tiny
    part = {"layers.1.q": MODULES["layers.1.q"]}
    with ne.ArraySwitch(load_all(base), base) as switch:
        for seed in range(20):
            trained_adapter(part, r=2, num_basis=7, seed=seed).save(tmp_path / str(seed))
            switch.add(str(seed), tmp_path / str(seed))
            switch.use(str(seed))
        assert len(switch._known._read) == 8
        switch.remove("19")
        assert len(switch._known._read) == 7


def test_an_adapter_that_was_trained_on_has_new_factors(switch, tmp_path):
    switch.use("second")
    before = bits(switch.arrays)
    part = {"layers.1.q": MODULES["layers.1.q"]}
    newer = trained_adapter(part, r=2, num_basis=7, seed=5)
    newer = newer.replace({m: (c.alpha * 2, c.beta) for m, c in newer.modules.items()})
    newer.save(tmp_path / "second", force=True)
    switch.use("second")
    assert bits(switch.arrays) != before
    with ne.ArraySwitch(load_all(switch._base.path), switch._base.path) as fresh:
        fresh.add("newer", newer)
        fresh.use("newer")
        assert bits(switch.arrays) == bits(fresh.arrays)


@pytest.mark.parametrize("keep_bytes", [0, 300, 1000])
def test_what_does_not_fit_is_not_kept(tiny, keep_bytes):
    base, _ = tiny
    with (
        ne.ArraySwitch(load_all(base), base) as usual,
        ne.ArraySwitch(load_all(base), base, keep_bytes=keep_bytes) as small,
    ):
        for switch in (usual, small):
            switch.add("first", tiny_adapter())
            switch.add("second", tiny_adapter(seed=77))
        for name in ("first", "second", "first", None, "second"):
            usual.use(name)
            small.use(name)
            assert bits(small.arrays) == bits(usual.arrays)
            assert small.kept_bytes <= keep_bytes
        assert usual.kept_bytes > 1000


@pytest.mark.parametrize("keep_bytes", [-1, 1.5, None, "1"])
def test_a_budget_is_a_number_of_bytes(tiny, keep_bytes):
    base, _ = tiny
    with pytest.raises(ArgumentError, match=r"^keep_bytes: "):
        ne.ArraySwitch(load_all(base), base, keep_bytes=keep_bytes)


def renamed(tmp_path, name):
    """Write an adapter that calls the base's layers.0 and layers.1 something else."""
    modules = {module.replace("layers.", name): shape for module, shape in MODULES.items()}
    trained_adapter(modules, r=4, num_basis=10, seed=11).save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("given", [{"text.blocks": "layers"}, ["text.blocks=layers"]])
def test_names_that_the_base_has_otherwise(tiny, tmp_path, given):
    """The same bits as by a merge with these rules; other adapters have no use for them."""
    base, adapter = tiny
    other = renamed(tmp_path, "text.blocks.")
    wanted = tmp_path / "wanted"
    ne.merge_checkpoint(base, [(other, 0.5), adapter], wanted, rename=given)
    before = bits(load_all(base))
    with ne.ArraySwitch(load_all(base), base, rename=given) as switch:
        switch.add("plain", adapter)
        switch.add("renamed", other)
        switch.use("plain")
        switch.use([("renamed", 0.5), ("plain", 1.0)])
        assert bits(switch.arrays) == bits(load_all(wanted))
        switch.use(None)
        assert bits(switch.arrays) == before
    with ne.ArraySwitch(load_all(base), base) as switch:
        switch.add("renamed", other)
        with pytest.raises(MismatchError, match="3 of 3 modules"):
            switch.use("renamed")
        assert bits(switch.arrays) == before


def test_rules_that_no_adapter_has_a_use_for(tiny, tmp_path):
    """Said when all have been used: another may have been meant."""
    base, adapter = tiny
    other = renamed(tmp_path, "text.blocks.")
    with ne.ArraySwitch(load_all(base), base, rename={"zz": "yy"}) as switch:
        switch.add("plain", adapter)
        with pytest.warns(NolaEdgeWarning, match="^rename: 'zz' does not occur in any") as caught:
            switch.use("plain")
        assert [warning.filename for warning in caught] == [__file__]
        switch.use(None)
        switch.use("plain")  # said once
    with ne.ArraySwitch(load_all(base), base, rename={"text.blocks": "layers", "z": "y"}) as switch:
        switch.add("plain", adapter)
        switch.add("renamed", other)
        for name in ("plain", "renamed", None):
            switch.use(name)


def test_rules_that_are_wrong_are_named(tiny, tmp_path):
    """Where they find a layer of the same shape, its weights in memory tell."""
    base, adapter = tiny
    arrays = load_all(base)
    before = bits(arrays)
    arrays["layers.0.q.weight"][0, 0] += 1
    changed = bits(arrays)
    for rules, says in (({"text.blocks": "layers"}, True), (None, False)):
        with ne.ArraySwitch(arrays, base, rename=rules) as switch:
            switch.add("one", renamed(tmp_path, "text.blocks.") if says else adapter)
            with pytest.raises(MismatchError, match="differs from the base") as caught:
                switch.use("one")
        hint = "or correct rename, which says that it is 'text.blocks.0.q.weight' of the adapter"
        assert str(caught.value).endswith(hint) is says
        assert bits(arrays) == changed != before


def test_what_is_no_rule_opens_nothing(tiny):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ArgumentError, match="must be NEW=OLD"):
        ne.ArraySwitch({}, tiny[0], rename=["layers"])
    assert len(os.listdir("/proc/self/fd")) == before
