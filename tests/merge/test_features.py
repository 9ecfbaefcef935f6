"""Several adapters, transposed storage, whole tensors, prefixes; mismatches are refused."""

import dataclasses
import gc
import json
import os

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter, NolaEdgeError
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    ChangedError,
    MismatchError,
    NotFiniteError,
)
from nola_edge.merge import blocks
from nola_edge.synthetic import trained_adapter
from tests.conftest import (
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    write_safetensors,
    write_sharded,
)
from tests.reference import merge as reference

F = np.float32


def merged(base, adapters, tmp_path, **options):
    ne.merge_checkpoint(base, adapters, tmp_path / "out", **options)
    assert ne.verify_checkpoint(tmp_path / "out", base, adapters).identical
    return load_all(tmp_path / "out")


def factors(adapter, module, shape):
    c = adapter.modules[module]
    return reference.factors(adapter.config, module, c.alpha, c.beta, *shape)


def test_several_adapters_are_rounded_once(tiny, tmp_path):
    """Each B times fl32(weight * s): a scaling that is no power of two, so that it matters."""
    base, _ = tiny
    one = tiny_adapter(r=3)
    one = Adapter(dataclasses.replace(one.config, lora_alpha=5.0), one.modules)
    two = tiny_adapter(seed=12, basis="uniform", r=3)
    got = merged(base, [(one, 0.3), (two, -0.7)], tmp_path)
    for module, shape in MODULES.items():
        (a1, b1), (a2, b2) = factors(one, module, shape), factors(two, module, shape)
        b = np.concatenate([b1 * F(0.3 * one.scaling), b2 * F(-0.7 * two.scaling)], axis=1)
        weight = load_all(base)[f"{module}.weight"]
        expected = reference.merge(weight, b, np.concatenate([a1, a2]), 1.0)
        assert got[f"{module}.weight"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 700])
def test_blocks_of_rows_do_not_show(tiny, tmp_path, monkeypatch, block_bytes, transposed):
    """Each block expands its own rows of a factor: the bits are those of one piece."""
    base, _ = tiny
    tensors = load_all(base)
    if transposed:
        for module in MODULES:
            tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    write_safetensors(tmp_path / "b.safetensors", tensors)
    options = {"fan_in_fan_out": transposed, "r": 3, "num_basis": 37}
    terms = [(tiny_adapter(**options), 0.5), (tiny_adapter(**options, seed=5), 2.0)]
    outputs = [tmp_path / "whole.safetensors", tmp_path / "blocks.safetensors"]
    ne.merge_checkpoint(tmp_path / "b.safetensors", terms, outputs[0])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    ne.merge_checkpoint(tmp_path / "b.safetensors", terms, outputs[1], num_threads=3)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert ne.verify_checkpoint(outputs[0], tmp_path / "b.safetensors", terms).identical
    with ne.open_merged(tmp_path / "b.safetensors", terms) as lazy:
        whole = load_all(outputs[0])
        assert all(lazy[name].tobytes() == whole[name].tobytes() for name in whole)


def test_a_weight_of_one_adapter_alone_keeps_its_bits(tiny, tmp_path):
    """An adapter for other modules does not change how this one is merged."""
    base, adapter = tiny
    other = Adapter(
        tiny_adapter(seed=5).config, {"layers.1.q": tiny_adapter(seed=5).modules["layers.1.q"]}
    )
    alone = merged(base, adapter, tmp_path)
    ne.merge_checkpoint(base, [adapter, other], tmp_path / "both")
    both = load_all(tmp_path / "both")
    name = "layers.0.q.weight"
    assert both[name].tobytes() == alone[name].tobytes()
    assert both["layers.1.q.weight"].tobytes() != alone["layers.1.q.weight"].tobytes()


def test_transposed_storage(tiny, tmp_path):
    base, _ = tiny
    tensors = load_all(base)
    for module in MODULES:
        tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    write_safetensors(tmp_path / "t.safetensors", tensors)
    straight = merged(base, tiny_adapter(), tmp_path)
    adapter = tiny_adapter(fan_in_fan_out=True)
    ne.merge_checkpoint(tmp_path / "t.safetensors", adapter, tmp_path / "t2.safetensors")
    transposed = load_all(tmp_path / "t2.safetensors")
    for module in MODULES:
        name = f"{module}.weight"
        assert np.array_equal(transposed[name].T, straight[name])


@pytest.mark.parametrize(("base_prefix", "adapter_prefix"), [("model.", ""), ("", "bert.")])
def test_names_that_differ_by_one_prefix(tiny, tmp_path, base_prefix, adapter_prefix):
    """The streams stay those of the adapter's own names."""
    base, _ = tiny
    tensors = {base_prefix + name: values for name, values in load_all(base).items()}
    write_safetensors(tmp_path / "b.safetensors", tensors)
    adapter = tiny_adapter()
    renamed = Adapter(adapter.config, {adapter_prefix + m: c for m, c in adapter.modules.items()})
    ne.merge_checkpoint(tmp_path / "b.safetensors", renamed, tmp_path / "o.safetensors")
    got = load_all(tmp_path / "o.safetensors")
    for module, shape in MODULES.items():
        a, b = factors(renamed, adapter_prefix + module, shape)
        weight = tensors[f"{base_prefix}{module}.weight"]
        expected = reference.merge(weight, b, a, renamed.scaling)
        assert got[f"{base_prefix}{module}.weight"].tobytes() == expected.tobytes()


def test_modules_to_save_replace_and_add(tiny, tmp_path):
    base, _ = tiny
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, modules_to_save=("norm", "classifier"))
    whole = {
        "norm.weight": np.full(40, 2.5, F),
        "classifier.weight": np.ones((3, 40), F),
        "classifier.bias": np.zeros(3, F),
    }
    Adapter(config, adapter.modules, whole).save(tmp_path / "whole")
    got = merged(base, tmp_path / "whole", tmp_path)
    assert (got["norm.weight"] == 2.5).all()
    assert got["classifier.weight"].shape == (3, 40)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["classifier.bias"] == "model-00003-of-00003.safetensors"
    with ne.open_merged(base, tmp_path / "whole") as lazy:
        assert {n: v.tobytes() for n, v in lazy.items()} == {n: v.tobytes() for n, v in got.items()}


def test_weights_in_a_mapping_or_a_pair(tiny, tmp_path):
    base, adapter = tiny
    expected = merged(base, [(adapter, 0.5)], tmp_path)["layers.0.q.weight"].tobytes()
    with ne.open_merged(base, {adapter: 0.5}) as tensors:
        assert tensors["layers.0.q.weight"].tobytes() == expected


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (("{adapter}", 0.5), "adapter: 0.5 is no Adapter and no path"),
        ([("{adapter}", "0.5")], "weight: '0.5' is not a number"),
        ([("{adapter}", True)], "weight: True is not a number"),
        ([("{adapter}", float("nan"))], "weight: nan times"),
        ([None], "adapter: None is no Adapter and no path"),
        ([], "adapter: at least one adapter is needed"),
    ],
)
def test_what_is_no_adapter_or_no_weight(tiny, tmp_path, adapters, message):
    def named(item):
        return str(tiny[1]) if item == "{adapter}" else item

    given = [tuple(map(named, i)) if isinstance(i, tuple) else named(i) for i in adapters]
    refused(tiny, tmp_path, message, tuple(given), error=ArgumentError)


def test_a_rank_above_the_sizes_merges(tiny, tmp_path):
    merged(tiny[0], tiny_adapter(r=50), tmp_path)


def tied(tiny, tmp_path, whole, config):
    """A base whose output layer is its embedding, and an adapter that brings whole tensors."""
    tensors = {**load_all(tiny[0]), "model.embed_tokens.weight": np.ones((5, 4), F)}
    base = tmp_path / "tied"
    base.mkdir()
    write_safetensors(base / "model.safetensors", tensors)
    (base / "config.json").write_text(json.dumps(config))
    adapter = tiny_adapter()
    saved = tuple(name.removesuffix(".weight") for name in whole)
    recorded = dataclasses.replace(adapter.config, modules_to_save=saved)
    return base, Adapter(recorded, adapter.modules, whole)


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"architectures": ["GPT2LMHeadModel"]}]
)
def test_a_tied_embedding_is_not_replaced_for_the_output_too(tiny, tmp_path, config):
    whole = {"model.embed_tokens.weight": np.zeros((5, 4), F)}
    refused(tied(tiny, tmp_path, whole, config), tmp_path, "is tied to the output layer")


def test_an_untied_embedding_is_replaced(tiny, tmp_path):
    whole = {"model.embed_tokens.weight": np.zeros((5, 4), F)}
    merged(*tied(tiny, tmp_path, whole, {"tie_word_embeddings": False}), tmp_path)


def test_a_new_output_layer_is_no_longer_tied(tiny, tmp_path):
    whole = {"lm_head.weight": np.zeros((5, 4), F)}
    config = {"model_type": "tiny", "tie_word_embeddings": True}
    base, adapter = tied(tiny, tmp_path, whole, config)
    assert (merged(base, adapter, tmp_path)["lm_head.weight"] == 0).all()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"model_type": "tiny", "tie_word_embeddings": False}


def whole_of(name, values, seed=2):
    """An adapter that brings a tensor whole, besides its coefficients for another module."""
    adapter = tiny_adapter(seed=seed)
    kept = {"layers.0.v": adapter.modules["layers.0.v"]}
    module = name.removesuffix(".weight")
    config = dataclasses.replace(adapter.config, modules_to_save=(module,))
    return Adapter(config, kept, {name: values})


@pytest.mark.parametrize("order", [1, -1])
def test_a_weight_is_replaced_or_merged_and_not_both(tiny, tmp_path, order):
    both = [whole_of("layers.1.q.weight", np.zeros((24, 40), F)), tiny_adapter()]
    refused(tiny, tmp_path, "layers.1.q.weight", both[::order], error=AdapterError)


def test_a_whole_tensor_too_large_for_the_base(tiny, tmp_path):
    adapter = whole_of("layers.1.q.weight", np.full((24, 40), 3.4e38, F))
    refused(tiny, tmp_path, "not finite in the base's dtype BF16", adapter)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_whole_tensor_that_is_not_finite(tiny, tmp_path, value):
    values = np.full((24, 40), value, F)
    for name in ("layers.1.q.weight", "classifier.weight"):
        refused(tiny, tmp_path, "infinite or NaN", whole_of(name, values), error=NotFiniteError)


def test_no_tensor_is_called_metadata(tiny, tmp_path):
    adapter = whole_of("__metadata__", np.ones(3, F))
    refused(tiny, tmp_path, "__metadata__", adapter, error=NolaEdgeError)
    adapter.save(tmp_path / "saved")
    refused(tiny, tmp_path, "__metadata__", tmp_path / "saved", error=AdapterError)


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


def test_asking_for_a_name_merges_nothing(tiny, monkeypatch):
    with ne.open_merged(*tiny) as tensors:
        monkeypatch.setattr(type(tensors), "_merged", None)
        assert "layers.0.q.weight" in tensors
        assert "absent" not in tensors


def test_forgotten_mappings_close_their_files(tiny):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        ne.open_merged(*tiny)["norm.weight"]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_report_is_true_where_all_agrees(tiny, tmp_path):
    ne.merge_checkpoint(*tiny, tmp_path / "out")
    assert ne.verify_checkpoint(tmp_path / "out", *tiny)
    assert not ne.verify_checkpoint(tiny[0], *tiny)


def test_force_replaces_and_cleans_up(tiny, tmp_path):
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "out")
    ne.merge_checkpoint(base, tiny_adapter(seed=3), tmp_path / "out", force=True)
    assert ne.verify_checkpoint(tmp_path / "out", base, tiny_adapter(seed=3)).identical
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter", "out"}


def refused(tiny, tmp_path, message, adapter=None, error=MismatchError, output=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        ne.merge_checkpoint(
            tiny[0], tiny[1] if adapter is None else adapter, output or tmp_path / "out", **options
        )
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_a_module_absent_from_the_base(tiny, tmp_path):
    adapter = tiny_adapter()
    extra = {**adapter.modules, "layers.2.q": adapter.modules["layers.1.q"]}
    refused(tiny, tmp_path, "nearest tensors: layers.", Adapter(adapter.config, extra))


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
    refused(tiny, tmp_path, "no finite float32", [(tiny[1], weight)], error=NolaEdgeError)


@pytest.mark.parametrize("place", ["base/out", "base", "adapter/out", "adapter", "out", "no/out"])
def test_where_an_output_cannot_be(tiny, tmp_path, place):
    (tmp_path / "out").mkdir()
    refused(tiny, tmp_path, "", error=NolaEdgeError, output=tmp_path / place)


def test_two_adapters_with_the_same_whole_tensor(tiny, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, modules_to_save=("norm",))
    one = Adapter(config, adapter.modules, {"norm.weight": np.ones(40, F)})
    refused(tiny, tmp_path, "already changed", [one, one], error=NolaEdgeError)


def test_a_whole_tensor_of_another_shape(tiny, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, modules_to_save=("norm",))
    one = Adapter(config, adapter.modules, {"norm.weight": np.ones(41, F)})
    refused(tiny, tmp_path, "has shape [41]", one)


def test_open_merged_notices_a_base_that_changes(tiny):
    base, adapter = tiny
    with ne.open_merged(base, adapter) as lazy:
        file = next(base.glob("model-00001*"))
        file.write_bytes(file.read_bytes())
        with pytest.raises(NolaEdgeError, match="changed while"):
            lazy["layers.0.q.weight"]


def test_memory_stays_flat(tmp_path):
    """A base of 200 MB is merged in far less; measured in a process of its own."""
    import subprocess
    import sys

    from nola_edge.synthetic import DecoderShape, trained_adapter, write_checkpoint

    shape = DecoderShape(layers=2, hidden=2048, intermediate=8192, vocabulary=8000)
    assert write_checkpoint(tmp_path / "base", shape) > 250e6
    trained_adapter(shape.linears()).save(tmp_path / "adapter")
    command = [sys.executable, "-m", "nola_edge.demo.comparison", "ours", "base", "adapter", "out"]
    done = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert json.loads(done.stdout)["peak_bytes"] < 100e6


def test_trained_biases_reach_peft_through_every_file(tiny, tmp_path):
    """PEFT names the bias of an adapted layer by the layer that it wrapped."""
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, bias="all")
    whole = {"layers.0.q.bias": np.ones(24, F)}
    trained = Adapter(config, adapter.modules, whole)
    trained.save(tmp_path / "saved")
    ne.export_lora(trained, tiny[0], tmp_path / "lora")
    trained.pack(tmp_path / "one.nola")
    Adapter.load(tmp_path / "one.nola").save(tmp_path / "unpacked")
    for folder in ("saved", "lora", "unpacked"):
        names = load_all(tmp_path / folder / "adapter_model.safetensors")
        assert "base_model.model.layers.0.q.base_layer.bias" in names
    loaded = Adapter.load(tmp_path / "saved")
    assert set(loaded.whole_tensors) == {"layers.0.q.bias"}
    expected = merged(tiny[0], trained, tmp_path)["layers.0.q.bias"]
    assert (expected == 1).all()


def test_the_same_bias_under_two_names(tiny, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, bias="all")
    Adapter(config, adapter.modules, {"layers.0.q.bias": np.ones(24, F)}).save(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_all(path)
    tensors["base_model.model.layers.0.q.bias"] = np.zeros(24, F)
    write_safetensors(path, tensors)
    refused(tiny, tmp_path, "is there as layers.0.q.bias too", tmp_path / "a", error=AdapterError)


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


def test_a_very_long_output_name(tiny, tmp_path):
    ne.merge_checkpoint(*tiny, tmp_path / ("o" * 255))
    assert (tmp_path / ("o" * 255)).is_dir()
