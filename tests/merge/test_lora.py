"""LoRA through every verb, against a slow reference; alone and together with NOLA."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.errors import AdapterError, ArgumentError, NotFiniteError
from nola_edge.export.lora import export_lora
from nola_edge.merge import windows
from nola_edge.testing.reference import fma32
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.lora_folders import factors, read_factors, scaling, write_lora
from tests.merge.checks import merged, refused
from tests.reference import merge as reference

F = np.float32


def expected(base, folder, module, s, transposed=False):
    a, b = read_factors(folder, module)
    weight = load_all(base)[f"{module}.weight"]
    return reference.merge(weight, *((a.T, b.T) if transposed else (b, a)), s)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_bits_of_the_reference(tiny, tmp_path, isa, dtype):
    folder = write_lora(tmp_path / "l", factors(dtype=dtype), lora_alpha=5)
    before = load_all(tiny[0])
    got = merged(tiny[0], folder, tmp_path)
    for module in MODULES:
        name = f"{module}.weight"
        assert got[name].tobytes() == expected(tiny[0], folder, module, 1.25).tobytes()
        assert got[name].tobytes() != before[name].tobytes()
    assert all(got[n].tobytes() == before[n].tobytes() for n in before if ".weight" not in n)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70))


@pytest.mark.filterwarnings("ignore::nola_edge.errors.NolaEdgeWarning")  # of an alpha of 0
@given(
    shape=SHAPES,
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    alpha=st.integers(-9, 9),
    rslora=st.booleans(),
    kind=st.sampled_from(["layer", "transposed", "embedding"]),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_shape_rank_and_orientation(
    tmp_path_factory, shape, ranks, alpha, rslora, kind, dtype, seed
):
    """One adapter keeps its scaling; of several, each B is multiplied by its own before."""
    tmp_path = tmp_path_factory.mktemp("any")
    stored = shape if kind == "layer" else shape[::-1]
    weight = np.random.default_rng(seed).standard_normal(stored).astype(dtype)
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": weight})
    embeddings = ("m",) if kind == "embedding" else ()
    terms, parts = [], []
    for number, r in enumerate(ranks):
        tensors = factors({"m": shape}, {"m": r}, seed + number, embeddings=embeddings)
        folder = write_lora(
            tmp_path / f"l{number}",
            tensors,
            r=r,
            lora_alpha=alpha,
            use_rslora=rslora,
            fan_in_fan_out=kind == "transposed",
        )
        terms.append((folder, 1 + number))
        parts.append((*read_factors(folder, "m"), (1 + number) * scaling(alpha, r, rslora)))
    s = parts[0][2] if len(parts) == 1 else 1.0
    a = np.concatenate([a for a, _, _ in parts])
    b = np.concatenate([b if len(parts) == 1 else b * F(s) for _, b, s in parts], axis=1)
    left, right = (b, a) if kind == "layer" else (a.T, b.T)
    with ne.open_merged(tmp_path / "base.safetensors", terms) as found:
        assert found["m.weight"].tobytes() == reference.merge(weight, left, right, s).tobytes()


@pytest.mark.parametrize("transposed", [False, True])
def test_windows_and_threads_do_not_show(tiny, tmp_path, monkeypatch, transposed):
    tensors = load_all(tiny[0])
    if transposed:
        for module in MODULES:
            tensors[f"{module}.weight"] = np.ascontiguousarray(tensors[f"{module}.weight"].T)
    base = tmp_path / "b.safetensors"
    write_safetensors(base, tensors)
    folder = write_lora(tmp_path / "l", fan_in_fan_out=transposed)
    outputs = [tmp_path / "whole.safetensors", tmp_path / "blocks.safetensors"]
    ne.merge_checkpoint(base, folder, outputs[0])
    monkeypatch.setattr(windows, "BLOCK_BYTES", 700)
    monkeypatch.setattr(windows, "_STRIP_BYTES", 200)
    monkeypatch.setattr(windows, "_ALIGNMENT", 3)
    ne.merge_checkpoint(base, folder, outputs[1], num_threads=3)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_whole_tensors_and_biases_take_their_place(tiny, tmp_path):
    tensors = factors()
    tensors[PREFIX + "layers.0.q.base_layer.bias"] = np.full(24, 2, F)
    tensors[PREFIX + "head.weight"] = np.ones((2, 3), F)
    folder = write_lora(tmp_path / "l", tensors, bias="lora_only", modules_to_save=["head"])
    got = merged(tiny[0], folder, tmp_path)
    assert (got["layers.0.q.bias"] == 2).all()
    assert (got["head.weight"] == 1).all()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_that_were_lost(tiny, tmp_path, bias):
    """Those of a head, saved whole, are others; and a base without biases has none to lose."""
    head = {f"{PREFIX}head.{name}": np.ones(3, F) for name in ("weight", "bias")}
    lost = write_lora(tmp_path / "lost", factors() | head, bias=bias, modules_to_save=["head"])
    message = f"{lost}: bias: announces trained biases, but the adapter has none, and "
    refused(tiny, tmp_path, f"{message}{tiny[0]} has 3 of its layers'", lost, error=AdapterError)
    tensors = {n: t for n, t in load_all(tiny[0]).items() if not n.endswith(".bias")}
    write_safetensors(tmp_path / "plain", tensors)
    ne.merge_checkpoint(tmp_path / "plain", lost, tmp_path / "out")


def with_biases(seed=0, **options):
    rng = np.random.default_rng(seed)
    biases = {
        f"{PREFIX}{module}.lora_B.bias": rng.standard_normal(out).astype(F)
        for module, (out, _) in MODULES.items()
    }
    return {**factors(seed=seed, **options), **biases}


def test_what_is_added_to_biases(tiny, tmp_path):
    """The operations of a weight, with A = 1: one adapter's is one multiply-add."""
    one = write_lora(tmp_path / "one", with_biases(1), lora_bias=True, lora_alpha=5)
    two = write_lora(tmp_path / "two", with_biases(2), lora_bias=True, lora_alpha=3)
    name, bias = "layers.0.v.bias", load_all(tiny[0])["layers.0.v.bias"]
    b1, b2 = (load_all(f / WEIGHTS_NAME)[f"{PREFIX}layers.0.v.lora_B.bias"] for f in (one, two))
    got = merged(tiny[0], one, tmp_path)
    assert got[name].tobytes() == fma32(F(1.25), b1, bias).tobytes()
    with ne.open_merged(tiny[0], [(one, 0.5), two]) as both:
        change = fma32(b2 * F(0.75), F(1), b1 * F(0.5 * 1.25))
        assert both[name].tobytes() == (bias + change).tobytes()


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (None, "layers.0.q.bias: is missing"),
        (np.zeros(3, F), "is F32 [3]"),
        (np.zeros(24, np.int32), "is I32 [24]"),
    ],
)
def test_a_bias_that_cannot_be_added_to_is_refused(tiny, tmp_path, bias, message):
    tensors = load_all(tiny[0])
    del tensors["layers.0.q.bias"]
    if bias is not None:
        tensors["layers.0.q.bias"] = bias
    write_safetensors(tmp_path / "b.safetensors", tensors)
    folder = write_lora(tmp_path / "l", with_biases(), lora_bias=True)
    refused((tmp_path / "b.safetensors", folder), tmp_path, message)


def test_a_bias_that_becomes_infinite_is_refused(tiny, tmp_path):
    tensors = with_biases()
    tensors[PREFIX + "layers.0.q.lora_B.bias"][3] = 3e38
    folder = write_lora(tmp_path / "l", tensors, lora_bias=True, lora_alpha=40)
    refused(
        (tiny[0], folder),
        tmp_path,
        "layers.0.q.bias: becomes infinite or NaN",
        error=NotFiniteError,
    )


def test_a_bias_that_is_replaced_is_not_added_to(tiny, tmp_path):
    whole = {**factors(), PREFIX + "layers.0.q.base_layer.bias": np.ones(24, F)}
    adapters = [
        write_lora(tmp_path / "whole", whole, bias="lora_only"),
        write_lora(tmp_path / "added", with_biases(), lora_bias=True),
    ]
    for pair in (adapters, adapters[::-1]):
        with pytest.raises(AdapterError, match=r"as a whole|whole tensor is already changed"):
            ne.open_merged(tiny[0], pair)


def test_a_weight_that_is_stored_the_other_way_is_refused_with_the_way_out(tiny, tmp_path):
    folder = write_lora(tmp_path / "l", fan_in_fan_out=True)
    refused((tiny[0], folder), tmp_path, "fan_in_fan_out: false in its configuration")


def test_a_module_that_the_base_lacks_is_refused(tiny, tmp_path):
    folder = write_lora(tmp_path / "l", factors({**MODULES, "layers.9.q": (3, 4)}))
    refused((tiny[0], folder), tmp_path, "1 of 4 modules of")


def test_a_tied_embedding_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    write_safetensors(
        tmp_path / "base" / "model.safetensors", {"model.embed_tokens.weight": np.ones((7, 5), F)}
    )
    config = tmp_path / "base" / "config.json"
    config.write_text('{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}')
    shape, names = {"model.embed_tokens": (5, 7)}, ("model.embed_tokens",)
    folder = write_lora(tmp_path / "l", factors(shape, embeddings=names))
    refused((tmp_path / "base", folder), tmp_path, "is tied to the output layer")
    config.write_text('{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}')
    with ne.open_merged(tmp_path / "base", folder) as found:
        a, b = read_factors(folder, "model.embed_tokens")
        np.testing.assert_allclose(found["model.embed_tokens.weight"], 1 + 2 * (b @ a).T, rtol=1e-5)


def test_a_resized_vocabulary_is_refused_with_what_to_do(tmp_path):
    base = tmp_path / "b.safetensors"
    write_safetensors(base, {"wte.weight": np.ones((7, 5), F)})
    folder = write_lora(tmp_path / "l", factors({"wte": (5, 9)}, embeddings=("wte",)))
    refused((base, folder), tmp_path, "wte: has 7 tokens here")
    refused((base, folder), tmp_path, "model.resize_token_embeddings(9)")


def test_too_large_a_scaling_is_refused(tiny, tmp_path):
    folder = write_lora(tmp_path / "l", lora_alpha=1e30)
    with pytest.raises(ArgumentError, match="is not a finite float32"):
        ne.open_merged(tiny[0], [(folder, 1e20)])


def test_a_factor_that_changes_meanwhile_is_noticed(tiny, tmp_path):
    from nola_edge.errors import ChangedError

    folder = write_lora(tmp_path / "l")
    with ne.open_merged(tiny[0], folder) as found:
        with (folder / WEIGHTS_NAME).open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\1\2\3\4")
        with pytest.raises(ChangedError):
            _ = [found[name] for name in found]


def test_memory_stays_flat(tmp_path):
    """Factors as large as the weights themselves are never in memory as a whole."""
    modules = {f"layers.{i}.q": (1024, 1024) for i in range(6)}
    write_safetensors(
        tmp_path / "b.safetensors", {f"{m}.weight": np.ones(s, F) for m, s in modules.items()}
    )
    folder = write_lora(tmp_path / "l", factors(modules, dict.fromkeys(modules, 512)), r=512)
    ne.merge_checkpoint(tmp_path / "b.safetensors", folder, tmp_path / "warm.safetensors")
    tracemalloc.start()
    ne.merge_checkpoint(
        tmp_path / "b.safetensors", folder, tmp_path / "o.safetensors", num_threads=1
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (folder / WEIGHTS_NAME).stat().st_size > 24 << 20
    assert peak < 20 << 20


def same(one, other):
    one, other = load_all(one), load_all(other)
    return all(one[name].tobytes() == other[name].tobytes() for name in {**one, **other})


@pytest.mark.parametrize("rslora", [False, True])
def test_an_exported_lora_merges_to_the_same_bits(tiny, tmp_path, rslora):
    base, nola = tiny
    config = dataclasses.replace(Adapter.load(nola).config, use_rslora=rslora, lora_alpha=5.0)
    adapter = Adapter(config, Adapter.load(nola).modules)
    ranks = {"layers.0.v": 7}
    lora = write_lora(
        tmp_path / "l", factors(ranks=ranks), rank_pattern={"0.v": 7}, use_rslora=rslora
    )
    for number, adapters in enumerate(([adapter], [lora], [adapter, (lora, -0.3)], [(lora, 0.1)])):
        export_lora(adapters, base, tmp_path / f"x{number}")
        ne.merge_checkpoint(base, adapters, tmp_path / f"direct{number}")
        ne.merge_checkpoint(base, tmp_path / f"x{number}", tmp_path / f"by-way{number}")
        assert same(tmp_path / f"direct{number}", tmp_path / f"by-way{number}")
        assert ne.verify_checkpoint(tmp_path / f"direct{number}", base, tmp_path / f"x{number}")


def test_an_export_carries_everything_over(tiny, tmp_path):
    tensors = with_biases()
    tensors[PREFIX + "head.weight"] = np.ones((2, 3), F)
    one = write_lora(tmp_path / "l", tensors, lora_bias=True, modules_to_save=["head"])
    export_lora(one, tiny[0], tmp_path / "x")
    assert load_all(tmp_path / "x" / WEIGHTS_NAME).keys() == tensors.keys()
    assert same(
        merged_folder(tiny, one, tmp_path / "m1"),
        merged_folder(tiny, tmp_path / "x", tmp_path / "m2"),
    )
    config = json.loads((tmp_path / "x" / CONFIG_NAME).read_text())
    assert config["base_model_name_or_path"] == "some/model"
    with pytest.raises(ArgumentError, match="export it alone, or merge"):
        export_lora([one, tiny[1]], tiny[0], tmp_path / "y")


def merged_folder(tiny, adapter, output):
    ne.merge_checkpoint(tiny[0], adapter, output)
    return output


def test_names_that_are_the_ends_of_others_keep_their_ranks(tmp_path):
    modules = {"q": (5, 6), "a.q": (5, 6), "b.a.q": (5, 6), "c.q": (5, 6)}
    ranks = {"q": 1, "a.q": 2, "b.a.q": 3, "c.q": 3}
    base = tmp_path / "b.safetensors"
    write_safetensors(base, {f"{m}.weight": np.ones(s, F) for m, s in modules.items()})
    patterns = {"^q": 1, "^a.q": 2}
    one = write_lora(tmp_path / "l", factors(modules, ranks), r=3, rank_pattern=patterns)
    export_lora(one, base, tmp_path / "x")
    again = ne.load_adapter(tmp_path / "x")
    assert {module: again.rank(module) for module in modules} == ranks


def test_adapters_with_different_prefixes_become_one(tiny, tmp_path):
    base, _ = tiny
    tensors = {f"model.{name}": values for name, values in load_all(base).items()}
    write_safetensors(tmp_path / "b.safetensors", tensors)
    short = write_lora(tmp_path / "short")
    long = write_lora(
        tmp_path / "long", factors({f"model.{m}": s for m, s in MODULES.items()}, seed=1)
    )
    export_lora([short, long], tmp_path / "b.safetensors", tmp_path / "x")
    assert list(ne.load_adapter(tmp_path / "x").modules) == [f"model.{m}" for m in MODULES]


def test_orientations_that_differ_are_not_exported_together(tiny, tmp_path):
    nola = tiny_adapter(fan_in_fan_out=True)
    with pytest.raises(ArgumentError, match="disagree about fan_in_fan_out"):
        export_lora([nola, write_lora(tmp_path / "l")], tiny[0], tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("weight", [1e30, -1e30])
def test_a_scaling_that_no_merge_would_read_is_not_exported(tiny, tmp_path, weight):
    lora = write_lora(tmp_path / "l")
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match=r"lora_alpha: would be .* no more than 1e30"):
        export_lora([(lora, weight)], tiny[0], tmp_path / "x")
    assert snapshot(tmp_path) == before


def test_exporting_needs_a_base_where_the_adapter_says_no_sizes(tmp_path, tiny):
    lora = write_lora(tmp_path / "lora")
    export_lora(lora, None, tmp_path / "again", dtype="BF16")
    assert ne.load_adapter(tmp_path / "again").shape("layers.0.q") == (24, 40)
    before = snapshot(tmp_path)
    for adapters, message in ((tiny[1], "do not say how large"), ([lora, lora], "are joined")):
        with pytest.raises(ArgumentError, match="base: is needed") as caught:
            export_lora(adapters, None, tmp_path / "out")
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before
