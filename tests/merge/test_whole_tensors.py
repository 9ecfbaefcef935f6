"""Tensors that an adapter brings whole: saved modules, embeddings, biases."""

import dataclasses
import json
import os

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter, NolaEdgeError
from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    AdapterError,
    ChangedError,
    NotFiniteError,
)
from tests.conftest import (
    MODULES,
    load_all,
    tiny_adapter,
    write_safetensors,
)
from tests.merge.checks import merged, refused

F = np.float32


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


def whole_of(name, values, seed=2):
    """An adapter that brings a tensor whole, besides its coefficients for another module."""
    adapter = tiny_adapter(seed=seed)
    kept = {"layers.0.v": adapter.modules["layers.0.v"]}
    module = name.removesuffix(".weight")
    config = dataclasses.replace(adapter.config, modules_to_save=(module,))
    return Adapter(config, kept, {name: values})


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


@pytest.mark.parametrize("order", [1, -1])
def test_a_weight_is_replaced_or_merged_and_not_both(tiny, tmp_path, order):
    both = [whole_of("layers.1.q.weight", np.zeros((24, 40), F)), tiny_adapter()]
    refused(tiny, tmp_path, "layers.1.q.weight", both[::order], error=AdapterError)


def test_a_whole_tensor_too_large_for_the_base(tiny, tmp_path):
    adapter = whole_of("layers.1.q.weight", np.full((24, 40), 3.4e38, F))
    refused(tiny, tmp_path, "not finite in the base's dtype BF16", adapter)


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.v.bias", "experts.up"])
def test_a_whole_tensor_that_is_no_part_of_one(tiny, tmp_path, name):
    """As an adapter records of rows in another order, or of experts that files have apart."""
    adapter = tiny_adapter()
    saved = ("norm", "layers.0.v", "experts")
    config = dataclasses.replace(adapter.config, modules_to_save=saved, bias="all")
    whole = {"norm.weight": np.ones(40, F), "layers.0.v.bias": np.ones(8, F)}
    whole["experts.up"] = np.ones((2, 8, 4), F)
    Adapter(config, adapter.modules, whole).save(tmp_path / "whole")
    path = tmp_path / "whole" / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": {name: None}}))
    message = f"{name}: 1 whole tensors of {tmp_path / 'whole'}, the first is '{name}', are in sev"
    refused(tiny, tmp_path, message, tmp_path / "whole")


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


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("model.embed_tokens.weight", (5, 4), "resize_token_embeddings(7), then save_pretrained"),
        ("lm_head.weight", (5, 4), "resize_token_embeddings(7), then save_pretrained"),
        ("score.weight", (2, 4), "num_labels=7, ignore_mismatched_sizes=True), then save_pr"),
        ("classifier.out_proj.weight", (2, 4), "num_labels=7, ignore_mismatched_sizes=True)"),
        ("score.weight", (7, 5), "has shape [7, 4], the base's tensor [7, 5]"),
    ],
)
def test_a_whole_tensor_that_was_resized_for_training(tiny, tmp_path, name, stored, message):
    base, _ = tiny
    tensors = {**load_all(base), name: np.ones(stored, F)}
    for file in base.glob("model*"):
        file.unlink()
    write_safetensors(base / "model.safetensors", tensors)
    adapter = whole_of(name, np.ones((7, 4), F))
    refused(tiny, tmp_path, message, adapter)
    tensors[name] = np.ones((7, 4), F)
    write_safetensors(base / "model.safetensors", tensors)
    assert merged(base, adapter, tmp_path)[name].shape == (7, 4)


def test_an_output_layer_without_a_tensor_of_its_own(tiny, tmp_path):
    """Untied, as the message says, the base can be merged into."""
    base, _ = tiny
    tensors = {**load_all(base), "model.embed_tokens.weight": np.ones((5, 4), F)}
    for file in base.glob("model*"):
        file.unlink()
    write_safetensors(base / "model.safetensors", tensors)
    adapter = trained_adapter({**MODULES, "lm_head": (5, 4)}, r=4, num_basis=10, seed=11)
    refused(tiny, tmp_path, "lm_head: has no weight of its own here, but shares", adapter)
    refused(tiny, tmp_path, "(lm_head.weight as a tensor of its own", adapter)
    tensors["lm_head.weight"] = np.ones((5, 4), F)
    write_safetensors(base / "model.safetensors", tensors)
    got = merged(base, adapter, tmp_path)
    assert (got["lm_head.weight"] != 1).any()
    assert (got["model.embed_tokens.weight"] == 1).all()


@pytest.mark.parametrize(
    ("config", "counted"),
    [
        ({}, 2),
        ({"num_labels": 4}, 4),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 9}, 3),
        ({"id2label": dict.fromkeys("01234")}, None),
        ({"num_labels": 5}, None),
        (None, None),
        ("{", None),
    ],
)
def test_a_head_with_other_labels_is_noted(tiny, tmp_path, config, counted):
    base, _ = tiny
    (base / "config.json").unlink()
    if config is not None:
        text = config if isinstance(config, str) else json.dumps({"model_type": "x", **config})
        (base / "config.json").write_text(text)
    report = ne.merge_checkpoint(
        base, whole_of("score.weight", np.ones((5, 40), F)), tmp_path / "out"
    )
    if counted is None:
        assert report.notes == ()
    else:
        (note,) = report.notes
        assert note.startswith(f"score.weight has 5 labels, the base's config.json {counted}: ")
        assert "from_pretrained(…, num_labels=5)" in note
    assert ne.merge_checkpoint(base, tiny_adapter(), tmp_path / "no-head").notes == ()


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
    refused(
        tiny, tmp_path, "is also present as layers.0.q.bias", tmp_path / "a", error=AdapterError
    )


def test_whole_tensors_stay_in_their_file(tiny, tmp_path):
    """They are read when they are written, from the file that was opened, whatever its path is."""
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, modules_to_save=("norm",))
    whole = Adapter(config, adapter.modules, {"norm.weight": np.full(40, 2.5, F)})
    whole.save(tmp_path / "whole")
    loaded = Adapter.load(tmp_path / "whole")
    loaded.save(tmp_path / "whole", force=True)
    tiny_adapter(seed=5).save(tmp_path / "whole", force=True)
    assert (merged(tiny[0], loaded, tmp_path)["norm.weight"] == 2.5).all()
    loaded.pack(tmp_path / "packed")
    again = Adapter.load(tmp_path / "packed")
    (tmp_path / "packed").unlink()
    assert (again.whole_tensors["norm.weight"] == 2.5).all()


def test_a_whole_tensor_that_changes_meanwhile(tiny, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, modules_to_save=("norm",))
    Adapter(config, adapter.modules, {"norm.weight": np.ones(40, F)}).save(tmp_path / "whole")
    loaded = Adapter.load(tmp_path / "whole")
    os.utime(tmp_path / "whole" / WEIGHTS_NAME, ns=(1, 1))
    refused(tiny, tmp_path, "changed while it was read", adapter=loaded, error=ChangedError)


@pytest.mark.parametrize(
    ("name", "stored", "other"),
    [
        ("lm_head.weight", "language_model.lm_head.weight", True),
        ("model.lm_head.weight", "lm_head.weight", True),
        ("score.weight", "underscore.weight", False),
        ("score.weight", "layers.0.scores.weight", False),
        ("score.weight", "weight", False),
    ],
)
def test_a_whole_tensor_below_another_prefix(tiny, tmp_path, name, stored, other):
    """It is added only where no tensor of the base has its name."""
    tensors = {**load_all(tiny[0]), stored: np.zeros((5, 40), F)}
    base = tmp_path / "with.safetensors"
    write_safetensors(base, tensors)
    adapter = whole_of(name, np.ones((5, 40), F))
    if other:
        message = f"beside '{stored}', which seems to be the same tensor; if it is, give --rename "
        refused((base, adapter), tmp_path, message, output=tmp_path / "out.safetensors")
        return
    with ne.open_merged(base, adapter) as found:
        assert found.keys() == {*tensors, name}


def test_a_trained_bias_below_another_prefix(tiny, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, bias="all")
    base = tmp_path / "with.safetensors"
    write_safetensors(base, {**load_all(tiny[0]), "model.norm.bias": np.zeros(4, F)})
    trained = Adapter(config, adapter.modules, {"norm.bias": np.ones(4, F)})
    message = "if it is, give --rename norm=model.norm (rename= in Python)"
    refused((base, trained), tmp_path, message, output=tmp_path / "out.safetensors")
    refused(tiny, tmp_path, "norm.bias: has no such bias", trained)
    with ne.open_merged(base, trained, rename=["norm.bias=model.norm.bias"]) as found:
        assert (found["model.norm.bias"] == 1).all()
