"""What cannot be merged is refused, and nothing has changed then."""

import os

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter, NolaEdgeError
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    ChangedError,
    MismatchError,
    NotFiniteError,
)
from nola_edge.files.safetensors import SafetensorsFile
from tests.conftest import (
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    write_safetensors,
    write_sharded,
)
from tests.lora_folders import PREFIX, factors, write_lora
from tests.merge.checks import refused

F = np.float32


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (("{adapter}", 0.5), "adapter: 0.5 is neither an Adapter nor a path"),
        ([("{adapter}", "0.5")], "weight: '0.5' is not a number"),
        ([("{adapter}", True)], "weight: True is not a number"),
        ([("{adapter}", float("nan"))], "weight: nan times"),
        ([None], "adapter: None is neither an Adapter nor a path"),
        ([("{adapter}", 10**400)], "weight: is too large for a float"),
        ([("{adapter}", 1j)], "weight: 1j is not a number"),
        ([], "adapter: at least one adapter is needed"),
    ],
)
def test_what_is_no_adapter_or_no_weight(tiny, tmp_path, adapters, message):
    def named(item):
        return str(tiny[1]) if item == "{adapter}" else item

    given = [tuple(map(named, i)) if isinstance(i, tuple) else named(i) for i in adapters]
    refused(tiny, tmp_path, message, tuple(given), error=ArgumentError)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_adapters_in_no_order(tiny, tmp_path, kind):
    """Python orders them otherwise in each process, and the bits of a sum depend on the order."""
    base, adapter = tiny
    lora = write_lora(tmp_path / "lora")
    message = f"adapter: is a {kind.__name__}, which has no order"
    refused((base, kind([adapter, lora])), tmp_path, message, error=ArgumentError)
    ne.merge_checkpoint(base, {adapter: 1, lora: 1}.keys(), tmp_path / "out")


def test_memory_for_a_rank_that_does_not_fit(tmp_path):
    """A rank multiplies what a small file asks for."""
    write_safetensors(tmp_path / "base", {"m.weight": np.zeros((1, 2**18), np.float16)})
    adapter = trained_adapter({"m": (1, 2**18)}, r=2**16, num_basis=1, seed=1)
    refused((tmp_path / "base", adapter), tmp_path, "factors larger than the weight")


def test_a_base_that_changes_meanwhile(tiny, tmp_path):
    base, adapter = tiny
    shard = base / "model-00001-of-00003.safetensors"
    index = base / "model.safetensors.index.json"
    for path in (shard, index):
        data = path.read_bytes()

        def touch(_, path=path, data=data):
            path.write_bytes(data.replace(b"total_size", b"total_sizf"))
            os.utime(path, ns=(1, 1))

        with pytest.raises(ChangedError, match=path.name):
            ne.merge_checkpoint(base, adapter, tmp_path / "out", progress=touch)
        path.write_bytes(data)
        assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter"}
    with ne.open_merged(base, adapter) as tensors:
        assert tensors["norm.weight"].all()
        touched = base / "model-00003-of-00003.safetensors"
        os.utime(touched, ns=(1, 1))
        with pytest.raises(ChangedError):
            tensors["norm.weight"]


def test_a_module_absent_from_the_base(tiny, tmp_path):
    adapter = tiny_adapter()
    extra = {**adapter.modules, "layers.2.q": adapter.modules["layers.1.q"]}
    for said in ("nearest tensors: layers.", "merge while the model loads: nola_edge.transformers"):
        refused(tiny, tmp_path, said, Adapter(adapter.config, extra))


def test_an_ambiguous_prefix(tmp_path):
    weights = {f"{p}.q.weight": np.ones((24, 40), F) for p in ("vision", "text")}
    write_safetensors(tmp_path / "b.safetensors", weights)
    adapter = tiny_adapter()
    one = Adapter(adapter.config, {"q": adapter.modules["layers.0.q"]})
    output = tmp_path / "o.safetensors"
    refused((tmp_path / "b.safetensors", one), tmp_path, "more than one way", output=output)


def change_tensor(base, name, change):
    tensors = load_all(base)
    tensors[name] = change(tensors[name])
    for file in base.glob("model*"):
        file.unlink()
    write_sharded(base, tensors, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.reshape(-1), "needs a matrix"),
        (lambda v: v.reshape(2, 12, 40), "needs a matrix"),
        (lambda v: v.astype(np.int8), "dtype I8, which cannot be merged"),
        (lambda v: v.astype(np.float64), "dtype F64, which cannot be merged"),
        (lambda v: v[:3, :3].copy(), "modules of other shapes than these"),
    ],
)
def test_a_target_of_another_form(tiny, tmp_path, change, message):
    change_tensor(tiny[0], "layers.0.q.weight", change)
    refused(tiny, tmp_path, message)


def test_the_wrong_base_or_merging_twice(tiny, tmp_path):
    adapter = tiny_adapter(base=tiny[0])
    ne.merge_checkpoint(tiny[0], adapter, tmp_path / "once")
    twice = (tmp_path / "once", adapter)
    refused(twice, tmp_path, "was made for a base with fingerprint")
    ne.merge_checkpoint(*twice, tmp_path / "twice", check_base=False)


def test_rules_for_one_adapter_that_give_another_the_wrong_tensors(tiny, tmp_path):
    """They are no sign of another base."""
    modules = {"layers.0.q": MODULES["layers.0.q"]}
    options = {"r": 2, "num_basis_a": 4, "num_basis_b": 4, "seed": 1, "lora_alpha": 2}
    ne.Adapter.create(modules, **options, base=tiny[0]).save(tmp_path / "own")
    ne.merge_checkpoint(tiny[0], tmp_path / "own", tmp_path / "right")
    message = "--rename (rename= in Python) says which tensors are compared, for every adapter"
    refused(tiny, tmp_path, message, tmp_path / "own", rename={"layers.0": "layers.1"})


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_base_that_is_not_finite(tiny, tmp_path, value):
    def poison(weight):
        weight = weight.copy()
        weight[3, 5] = value
        return weight

    change_tensor(tiny[0], "layers.0.v.weight", poison)
    refused(tiny, tmp_path, "layers.0.v.weight: a merged weight", error=NotFiniteError)


def test_an_overflowing_merge(tiny, tmp_path):
    adapter = tiny_adapter()
    loud = {m: (c.alpha * F(1e25), c.beta * F(1e25)) for m, c in adapter.modules.items()}
    refused(tiny, tmp_path, "infinite or NaN", adapter.replace(loud), error=NotFiniteError)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e39])
def test_a_weight_that_is_not_finite(tiny, tmp_path, weight):
    refused(tiny, tmp_path, "not a finite float32", [(tiny[1], weight)], error=NolaEdgeError)


@pytest.mark.parametrize(
    "place", ["base/out", "base", "adapter/out", "adapter", "out", "adapter/new/out"]
)
def test_where_an_output_cannot_be(tiny, tmp_path, place):
    (tmp_path / "out").mkdir()
    refused(tiny, tmp_path, "", error=NolaEdgeError, output=tmp_path / place)


def test_open_merged_notices_a_base_that_changes(tiny):
    base, adapter = tiny
    with ne.open_merged(base, adapter) as lazy:
        file = next(base.glob("model-00001*"))
        file.write_bytes(file.read_bytes())
        with pytest.raises(NolaEdgeError, match="changed while"):
            lazy["layers.0.q.weight"]


def test_a_link_to_a_folder_is_not_dropped(tiny, tmp_path):
    (tiny[0] / "linked").symlink_to(tiny[0] / "sub")
    refused(tiny, tmp_path, "is a link to a folder", error=NolaEdgeError)


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_written_into_or_around_an_adapter(tiny, tmp_path, force):
    folder = tmp_path / "adapters"
    folder.mkdir()
    tiny_adapter().save(folder / "one")
    (folder / "notes.safetensors").write_text("notes")
    loaded = Adapter.load(folder / "one")
    before = snapshot(tmp_path)
    for adapter in (loaded, loaded.quantize(8)):
        for target in (folder, folder / "one" / "inside"):
            for write in (adapter.save, adapter.pack):
                with pytest.raises(NolaEdgeError):
                    write(target, force=force)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base/model.safetensors.index.json", "is not an index file of at most 16777216 bytes"),
        ("adapter/adapter_config.json", "has [0-9]+ bytes, more than the limit of 1000000"),
    ],
)
def test_json_of_an_absurd_size(tiny, tmp_path, name, message):
    with (tmp_path / name).open("ab") as file:
        file.truncate(200_000_000)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    with pytest.raises(NolaEdgeError, match=message):
        ne.merge_checkpoint(*tiny, tmp_path / "out")
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("which", ["merged", "base"])
def test_verify_notices_a_change(tiny, tmp_path, which):
    ne.merge_checkpoint(*tiny, tmp_path / "merged")
    folder = tiny[0] if which == "base" else tmp_path / "merged"
    with pytest.raises(ChangedError):
        ne.verify_checkpoint(
            tmp_path / "merged",
            *tiny,
            progress=lambda _: os.utime(folder / "model-00001-of-00003.safetensors", ns=(1, 1)),
        )


def test_an_adapter_that_changes_while_it_is_read(tiny, monkeypatch):
    read = SafetensorsFile.read

    def touch(file, name):
        os.utime(file.path, ns=(1, 1))
        return read(file, name)

    monkeypatch.setattr(SafetensorsFile, "read", touch)
    with pytest.raises(ChangedError):
        Adapter.load(tiny[1])


def test_an_adapter_that_becomes_shorter(tiny, monkeypatch):
    """An error, where reading a mapping would end the process."""
    read = SafetensorsFile.read

    def shorten(file, name):
        os.truncate(file.path, file.header_size)
        return read(file, name)

    monkeypatch.setattr(SafetensorsFile, "read", shorten)
    with pytest.raises(ChangedError, match="became shorter"):
        Adapter.load(tiny[1])


def test_a_base_that_becomes_shorter(tmp_path):
    """While what no adapter changes is copied: the base has changed, not the output failed."""
    big = {f"norm{i}.weight": np.ones(1 << 20, F) for i in range(8)}
    weights = {"layers.0.q.weight": np.ones((24, 40), F), **big}
    path = tmp_path / "base.safetensors"
    write_safetensors(path, weights)
    adapter = Adapter.create(
        {"layers.0.q": (24, 40)}, r=2, num_basis_a=4, num_basis_b=4, seed=1, lora_alpha=2
    )

    def shorten(_):
        os.truncate(path, 5000)

    with pytest.raises(ChangedError, match=r"base\.safetensors: became shorter while it was read"):
        ne.merge_checkpoint(path, adapter, tmp_path / "out.safetensors", progress=shorten)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_an_exported_lora_is_finite(tiny, tmp_path):
    adapter = tiny_adapter()
    huge = {name: (np.full(10, 1e6, F), c.beta) for name, c in adapter.modules.items()}
    before = snapshot(tmp_path)
    with pytest.raises(NotFiniteError, match="lora_A is not finite in F16"):
        ne.export_lora(adapter.replace(huge), tiny[0], tmp_path / "lora", dtype="F16")
    assert snapshot(tmp_path) == before


def test_only_modules_that_are_there_are_replaced(tiny):
    with pytest.raises(AdapterError, match="is not a module of the adapter"):
        tiny_adapter().replace({"absent": (np.ones(10, F), np.ones(10, F))})


def as_double(tensors):
    return {name: values.astype(np.float64) for name, values in tensors.items()}


def test_float64_is_told_how_to_become_float32(tiny, tmp_path):
    """Of a base, of factors and of whole tensors: there is no other file that it was made from."""
    base, adapter = tiny
    write_safetensors(tmp_path / "f64.safetensors", as_double(load_all(base)))
    write_lora(tmp_path / "lora", as_double(factors()))
    whole = {**factors(), f"{PREFIX}norm.weight": np.ones(40, np.float64)}
    write_lora(tmp_path / "whole", whole, modules_to_save=["norm"])
    adapter_file = tmp_path / "adapter" / "adapter_model.safetensors"
    again = as_double(load_all(adapter_file))
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=r"has dtype F64, .* dtype=torch.float32\), then save"):
        ne.merge_checkpoint(tmp_path / "f64.safetensors", adapter, tmp_path / "o.safetensors")
    for given in ("lora", "whole"):
        with pytest.raises(AdapterError, match=r"F64, must be .*; save the adapter again .*float"):
            ne.merge_checkpoint(base, tmp_path / given, tmp_path / "out")
    assert snapshot(tmp_path) == before
    write_safetensors(adapter_file, again)
    with pytest.raises(AdapterError, match=r"F64, coefficients are .*; save the adapter again"):
        ne.load_adapter(adapter)
