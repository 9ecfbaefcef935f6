"""Switching arrays between adapters: every bit of a merged checkpoint, and back."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import (
    ArgumentError,
    MismatchError,
    NolaEdgeError,
)
from nola_edge.merge import windows
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.lora_folders import PREFIX, factors, write_lora
from tests.merge.checks import bits


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
