"""A configuration is refused where it is read, or goes through every writer and comes back."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter, NolaEdgeError
from nola_edge.adapters.nola_config import BOOKKEEPING, AdapterConfig
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from tests.cli.test_cli import run
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.files.test_jsonio import said_by, texts, values

FIELDS = [*sorted(BOOKKEEPING), "lora_alpha", "modules_to_save", "base_fingerprint", "unknown"]


def read_as_others_do(data):
    """Parse JSON as programs do that know neither NaN nor half a character."""

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(data, parse_constant=refuse)
    json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
    return read


def with_field(folder, name, text):
    """Put a field into a saved configuration, as the text that it is."""
    path = folder / CONFIG_NAME
    fields = {**json.loads(path.read_text()), name: "HERE"}
    path.write_text(json.dumps(fields).replace('"HERE"', text))


@given(st.sampled_from(FIELDS), values, st.booleans())
@settings(max_examples=60)
def test_what_is_accepted_comes_back_from_every_writer(tmp_path_factory, name, value, listed):
    folder = tmp_path_factory.mktemp("config")
    tiny_adapter().save(folder / "a")
    text = json.dumps([value] if listed else value).replace("Infinity", "1e400")
    with_field(folder / "a", name, text)
    before = snapshot(folder)
    adapter, refusal = said_by(Adapter.load, folder / "a")
    if adapter is None:
        assert refusal.isprintable()
        assert snapshot(folder) == before
        return
    adapter.pack(folder / "packed")
    unpacked = Adapter.load(folder / "packed")
    unpacked.save(folder / "b")
    unpacked.quantize(4).save(folder / "c")
    small = Adapter.load(folder / "c")
    small.pack(folder / "small")
    wanted = dataclasses.replace(
        adapter.config, basis_fingerprint=unpacked.config.basis_fingerprint
    )
    for found in (unpacked, Adapter.load(folder / "b")):
        assert found.config == wanted
    for found in (small, Adapter.load(folder / "small")):
        assert found.config == dataclasses.replace(
            wanted, coefficient_bits=4, exact_first_alpha=True
        )
    for written in (folder / "b", folder / "c"):
        read_as_others_do((written / CONFIG_NAME).read_bytes())


@pytest.mark.parametrize("name", ["nola_dropout", "task_type", "target_modules", "lora_alpha", "x"])
@pytest.mark.parametrize(
    "text", ["1e400", '["a", -1e999]', "9" * 400, '"\\ud800"', '{"\\ud800": 1}']
)
def test_pack_and_quantize_refuse_and_write_nothing(tmp_path, name, text):
    tiny_adapter().save(tmp_path / "a")
    with_field(tmp_path / "a", name, text)
    before = snapshot(tmp_path)
    for path in (tmp_path / "a", tmp_path / "a" / CONFIG_NAME):
        with pytest.raises(NolaEdgeError) as caught:
            Adapter.load(path)
        assert str(caught.value).isprintable()
    with pytest.raises(NolaEdgeError, match=f"{CONFIG_NAME}: {name}"):
        Adapter.load(tmp_path / "a")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", [["pack"], ["quantize"], ["inspect"]])
def test_the_command_line_names_the_field(tmp_path, command):
    tiny_adapter().save(tmp_path / "a")
    with_field(tmp_path / "a", "task_type", "[1e400]")
    before = snapshot(tmp_path)
    output = [] if command == ["inspect"] else ["-o", tmp_path / "out.nola"]
    done = run(*command, tmp_path / "a", *output)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"nola-edge: {tmp_path / 'a' / CONFIG_NAME}: task_type[0]: Infinity is not a JSON number"
    )
    assert done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), [10**400], "\ud800", {1: 2}, {"x"}, b"x", np.float32(1)]
)
def test_what_a_caller_made_is_refused_by_every_writer(tmp_path, value):
    made = tiny_adapter()
    config = dataclasses.replace(made.config, bookkeeping={"task_type": value})
    adapter = Adapter(config, made.modules)
    for write in (adapter.save, adapter.pack, adapter.quantize(8).save):
        with pytest.raises(NolaEdgeError, match="task_type") as caught:
            write(tmp_path / "out")
        assert str(caught.value).isprintable()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"bookkeeping": {"use_dora": True}},
        {"modules_to_save": ["head"]},
        {"modules_to_save": ("head", 1)},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400},
    ],
)
def test_a_configuration_that_no_reader_would_accept_cannot_be_made(fields):
    plain = {"r": 1, "num_basis_a": 1, "num_basis_b": 1, "seed": 0, "lora_alpha": 1.0}
    with pytest.raises(NolaEdgeError, match=next(iter(fields.get("bookkeeping", fields)))):
        AdapterConfig(**{**plain, **fields})


@pytest.mark.parametrize("write", ["save", "pack"])
def test_what_grows_too_large_on_the_way_is_not_written(tmp_path, write):
    """A letter of two bytes takes six where it is escaped."""
    tiny_adapter().save(tmp_path / "a")
    adapter = Adapter.load(tmp_path / "a")
    config = dataclasses.replace(adapter.config, bookkeeping={"task_type": "é" * 2_000_000})
    with pytest.raises(NolaEdgeError, match="bytes"):
        getattr(Adapter(config, adapter.modules), write)(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@given(st.dictionaries(texts.filter(bool), st.just(0), min_size=1, max_size=2))
@settings(max_examples=20)
def test_names_of_tensors_too(tmp_path_factory, names):
    """A tensor's name in JSON may be half a character; safetensors' own reader refuses it."""
    folder = tmp_path_factory.mktemp("names")
    tiny_adapter().save(folder / "a")
    tensors = load_all(folder / "a" / WEIGHTS_NAME)
    whole = {f"{PREFIX}head.{name}": np.ones(2, np.float32) for name in names}
    with_field(folder / "a", "modules_to_save", '["head"]')
    _, refusal = said_by(write_safetensors, folder / "a" / WEIGHTS_NAME, {**tensors, **whole})
    if refusal is None:
        adapter, refusal = said_by(Adapter.load, folder / "a")
    if refusal is not None:
        assert refusal.isprintable()
        return
    adapter.pack(folder / "packed")
    assert Adapter.load(folder / "packed").whole_tensors.keys() == adapter.whole_tensors.keys()


@pytest.mark.torch
def test_peft_reads_what_comes_back(tmp_path):
    pytest.importorskip("peft")
    from nola_edge.peft import NolaConfig

    tiny_adapter().save(tmp_path / "a")
    with_field(tmp_path / "a", "target_modules", '["é", "\\ud83d\\ude00"]')
    with_field(tmp_path / "a", "lora_alpha", "1e-300")
    Adapter.load(tmp_path / "a").pack(tmp_path / "packed")
    Adapter.load(tmp_path / "packed").save(tmp_path / "b")
    config = NolaConfig.from_pretrained(tmp_path / "b")
    assert config.target_modules == {"é", "😀"}
    assert config.lora_alpha == 1e-300


@pytest.mark.torch
@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": [float("inf")]},
        {"revision": "\ud800"},
        {"auto_mapping": {"a": 1e400}},
    ],
)
def test_peft_is_given_nothing_that_it_would_write_and_nobody_read(fields):
    pytest.importorskip("peft")
    from nola_edge.peft import NolaConfig

    NolaConfig(target_modules=["q"], task_type="CAUSAL_LM", layers_to_transform=[1, 2])
    with pytest.raises(ValueError, match=next(iter(fields))):
        NolaConfig(target_modules=["q"], **fields)


def test_an_index_is_written_as_strictly(tmp_path, tiny):
    base, adapter = tiny
    path = base / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"total_size"', '"x": 1e400, "total_size"'))
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError, match=r"metadata\.x: Infinity is not a JSON number"):
        ne.merge_checkpoint(base, adapter, tmp_path / "out")
    assert snapshot(tmp_path) == before
