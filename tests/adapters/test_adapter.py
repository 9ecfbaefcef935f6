"""NOLA holds what every method must, survives a round trip, and refuses what it must."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nola_edge import Adapter, NolaEdgeError
from nola_edge.adapters.fingerprints import modules_fingerprint
from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.nola_files import ALPHA, BETA
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.testing import AdapterContract, AdapterFiles
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.reference.basis import stream_id
from tests.reference.merge import factors


class TestNola(AdapterContract):
    required_fields = ("nola_version", "r", "num_basis_a", "num_basis_b", "seed", "lora_alpha")
    bad_fields: ClassVar = {
        "nola_version": [True, "1", 0],
        "r": [0, True, 4.0, "4"],
        "num_basis_a": [0, 1.5],
        "num_basis_b": [-1],
        "seed": [-1, "1"],
        "lora_alpha": [0, "8", True],
        "beta_unit": [0, "2", True, 1e7],
        "basis": ["gauss"],
        "use_rslora": ["yes"],
        "bias": ["some"],
        "modules_to_save": ["head", [1]],
        "coefficient_bits": [5],
        "exact_first_alpha": [1, "yes", True],  # without coefficient_bits
    }

    def files(self, shapes, seed=0):
        with TemporaryDirectory() as folder:
            trained_adapter(shapes, r=4, num_basis=10, seed=seed).save(Path(folder) / "a")
            return AdapterFiles.read(Path(folder) / "a")

    def product(self, files, module, shape):
        config = AdapterConfig.from_json(dict(files.config), file="")
        pair = (files.tensors[PREFIX + module + name] for name in (ALPHA, BETA))
        a, b = factors(config, module, *pair, *shape)
        return b, a, config.scaling


names = st.from_regex(r"[a-z]{1,5}(\.[a-z0-9_]{1,4}){0,3}", fullmatch=True)


@given(
    st.sets(names, min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["rademacher", "uniform"]),
    st.booleans(),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e3),
)
@settings(max_examples=15)  # the contract compares factors too
def test_round_trip(tmp_path_factory, modules, r, k, num_beta, seed, basis, rslora, alpha, unit):
    folder = tmp_path_factory.mktemp("a")
    adapter = Adapter.create(
        dict.fromkeys(modules, (7, 5)), r=r, num_basis_a=k, num_basis_b=num_beta, seed=seed,
        lora_alpha=alpha, basis=basis, use_rslora=rslora,
        beta_unit=unit,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    adapter = adapter.replace(
        {m: (rng.standard_normal(k), rng.standard_normal(num_beta)) for m in modules}
    )
    adapter.save(folder / "x")
    loaded = Adapter.load(folder / "x")
    assert list(loaded.modules) == list(adapter.modules)
    assert loaded.scaling == (alpha / r**0.5 if rslora else alpha / r) * unit
    for m in modules:
        for name in ("alpha", "beta"):
            ours, theirs = getattr(adapter.modules[m], name), getattr(loaded.modules[m], name)
            assert ours.tobytes() == theirs.tobytes()
        got = loaded.factors(m, 7, 5)
        expected = factors(loaded.config, m, loaded.modules[m].alpha, loaded.modules[m].beta, 7, 5)
        assert [x.tobytes() for x in got] == [x.tobytes() for x in expected]


def test_a_fresh_adapter_changes_nothing_and_starts_like_lora():
    adapter = Adapter.create(
        {"m": (64, 300)}, r=8, num_basis_a=32, num_basis_b=16, seed=1, lora_alpha=8
    )
    a, b = adapter.factors("m", 64, 300)
    assert not b.any()
    assert adapter.modules["m"].alpha[0] == np.float32(np.sqrt(32 / 900))
    assert not adapter.modules["m"].alpha[1:].any()
    # Kaiming-uniform(a = sqrt 5) has variance 1 / (3 in).
    np.testing.assert_allclose(a.var(), 1 / 900, rtol=0.05)


def test_what_is_saved_is_small_and_readable(tmp_path):
    from safetensors.numpy import load_file

    tiny_adapter().save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS_NAME)
    assert {t.shape for t in tensors.values()} == {(10,)}
    config = json.loads((tmp_path / "a" / CONFIG_NAME).read_text())
    assert config["peft_type"] == "NOLA"
    assert config["nola_version"] == 1


def test_names_fingerprint_is_fnv_of_the_sorted_names():
    assert modules_fingerprint(["foobar"]) == "85944171f73967e8"  # a known answer of its authors
    assert int(modules_fingerprint(["\u00e9:A"]), 16) == stream_id("\u00e9", "A")
    assert modules_fingerprint(["x", "a"]) == modules_fingerprint(["a", "x"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_coefficients(tmp_path, dtype):
    adapter = tiny_adapter()
    adapter.save(tmp_path / "a")
    path = tmp_path / "a" / WEIGHTS_NAME
    halves = {name: values.astype(dtype) for name, values in load_all(path).items()}
    write_safetensors(path, halves)
    loaded = Adapter.load(tmp_path / "a")
    for m, coefficients in loaded.modules.items():
        expected = adapter.modules[m].alpha.astype(dtype).astype(np.float32)
        assert coefficients.alpha.tobytes() == expected.tobytes()


def edit_config(**changes):
    def edit(folder):
        path = folder / CONFIG_NAME
        config = json.loads(path.read_text())
        for name, value in changes.items():
            if value is ...:
                config.pop(name)
            else:
                config[name] = value
        path.write_text(json.dumps(config))

    return edit


def edit_tensors(change):
    def edit(folder):
        path = folder / WEIGHTS_NAME
        tensors = load_all(path)
        change(tensors)
        write_safetensors(path, tensors)

    return edit


FIRST = PREFIX + "layers.0.q"


def poke(value):
    return edit_tensors(lambda t: t[FIRST + ALPHA].__setitem__(3, value))


def put(name, value):
    return edit_tensors(lambda t: t.__setitem__(name, value))


def rename(old, new):
    return edit_tensors(lambda t: t.__setitem__(new, t.pop(old)))


def replace_file(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def pickled(folder):
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")


F = np.float32
BAD = {
    "another method": (edit_config(peft_type="LORA"), "peft_type: is 'LORA'"),
    "a newer version": (edit_config(nola_version=2), "upgrade nola-edge"),
    "r huge": (edit_config(r=10**9), "r: is '1000000000'"),
    "seed too large": (edit_config(seed=2**63), "seed: is"),
    "k other than the tensors": (edit_config(num_basis_b=11), "the configuration says [11]"),
    "unknown basis": (edit_config(basis="gauss"), "basis: is 'gauss'"),
    "alpha infinite": (edit_config(lora_alpha=1e400), "not a JSON number"),
    "DoRA": (edit_config(use_dora=True), "use_dora: is True: not understood"),
    "rank pattern": (edit_config(rank_pattern={"q": 8}), "rank_pattern"),
    "alpha pattern": (edit_config(alpha_pattern={"q": 8}), "alpha_pattern"),
    "layer replication": (edit_config(layer_replication=[[0, 4]]), "layer_replication"),
    "foreign generator": (edit_config(basis_fingerprint="0" * 64), "another generator"),
    "other seed": (edit_config(seed=12), "another generator"),
    "renamed modules": (edit_config(modules_fingerprint="0" * 16), "modules were renamed"),
    "duplicate keys": (replace_file(CONFIG_NAME, b'{"r": 1, "r": 2}'), "duplicate key 'r'"),
    "config no JSON": (replace_file(CONFIG_NAME, b"\x80"), "not UTF-8"),
    "no config": (lambda folder: (folder / CONFIG_NAME).unlink(), f"has no {CONFIG_NAME}"),
    "pickle": (pickled, "never read"),
    "NaN": (poke(np.nan), "coefficient 3 is nan"),
    "no partner": (edit_tensors(lambda t: t.pop(FIRST + BETA)), "has no nola_beta"),
    "no prefix": (rename(FIRST + ALPHA, "layers.0.q.nola_alpha"), "does not begin with"),
    "adapter name left": (rename(FIRST + ALPHA, FIRST + ALPHA + ".default"), "neither coeff"),
    "empty module": (rename(FIRST + ALPHA, PREFIX + ".nola_alpha"), "neither coefficients"),
    "unprintable": (put(PREFIX + "a\n\x1b[31m" + ALPHA, np.zeros(10, F)), "does not begin"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_with_one_printable_line(tmp_path, case):
    tiny_adapter().save(tmp_path / "a")
    edit, message = BAD[case]
    edit(tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError) as caught:
        Adapter.load(tmp_path / "a")
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(tmp_path / "a"))
    assert text.isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    tiny_adapter().save(tmp_path / "a")
    (tmp_path / "a" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "a" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NolaEdgeError, match="leads out of the folder"):
        Adapter.load(tmp_path / "a")


def test_bookkeeping_survives(tmp_path):
    tiny_adapter().save(tmp_path / "a")
    edit_config(task_type="CAUSAL_LM", nola_dropout=0.1, layers_to_transform=[1])(tmp_path / "a")
    Adapter.load(tmp_path / "a").save(tmp_path / "b")
    config = json.loads((tmp_path / "b" / CONFIG_NAME).read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["layers_to_transform"] == [1]


def test_saving_never_overwrites_unasked(tmp_path):
    tiny_adapter().save(tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError, match="exists already"):
        tiny_adapter(seed=5).save(tmp_path / "a")
    assert snapshot(tmp_path) == before
    Adapter.load(tmp_path / "a").save(tmp_path / "a", force=True)


def test_neither_folder_nor_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for location in (tmp_path / "absent", "./absent", "somebody/absent"):
        with pytest.raises(NolaEdgeError, match="does not exist"):
            Adapter.load(location)


def test_create_compares_shapes_with_the_base(tiny):
    options = {"r": 2, "num_basis_a": 3, "num_basis_b": 3, "seed": 0, "lora_alpha": 1.0}
    Adapter.create({"layers.0.q": (24, 40)}, base=tiny[0], **options)
    with pytest.raises(NolaEdgeError, match="modules of other shapes"):
        Adapter.create({"layers.0.q": (40, 24)}, base=tiny[0], **options)
