"""What cannot be converted is refused in one line, and nothing has changed then."""

import json
import tracemalloc

import numpy as np
import pytest

from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.convert import convert_checkpoint
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    FormatError,
    MismatchError,
    NolaEdgeError,
    NotFiniteError,
    OutputError,
)
from nola_edge.files.safetensors import SafetensorsFile
from tests.adapters.public_nola.checkpoints import (
    F,
    gpt2_tensors,
    pair,
    peft_tensors,
    vit_tensors,
    write_folder,
)
from tests.conftest import load_all, snapshot, write_safetensors

A = "base_model.model.layers.0.q.lora_A"


def refused(source, tmp_path, message, error=AdapterError, output=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        convert_checkpoint(source, output or tmp_path / "out", **options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def write(tmp_path, tensors):
    path = tmp_path / "file.safetensors"
    write_safetensors(path, tensors)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "drawn_on: is needed for a checkpoint of the public NOLA code"),
        ({"drawn_on": "cuda"}, "drawn_on: is 'cuda'; give cpu, or the GPU by its name"),
        ({"drawn_on": "tpu"}, "'tpu'; give cpu, or the GPU by its name (a10, a10g"),
        ({"drawn_on": "cpu", "gpu": "a100"}, "drawn_on: is given twice: cpu and a100"),
        ({"gpu": "a101"}, "drawn_on: is 'a101'; give cpu, or the GPU by its name (a10"),
        ({"gpu": "a100", "multiprocessors": 108}, "given twice: a100 and 108xNone"),
        ({"multiprocessors": 108}, "drawn_on: is '108xNone'; give cpu"),
        ({"threads_per_multiprocessor": 2048}, "drawn_on: is 'Nonex2048'; give cpu"),
        ({"multiprocessors": 0, "threads_per_multiprocessor": 2048}, "is '0x2048'; give"),
        ({"multiprocessors": 80, "threads_per_multiprocessor": 255}, "is '80x255'; give"),
        ({"multiprocessors": True, "threads_per_multiprocessor": 1024}, "is 'Truex1024'; give"),
        ({"drawn_on": "cpu", "older_torch": True}, "is about 16-bit numbers drawn on a GPU"),
        ({"drawn_on": "cpu", "lora_alpha": 3}, "is 3, the configuration says 4"),
        ({"drawn_on": "cpu", "rank": 2}, "rank: does not belong to a checkpoint of LLaMA"),
        ({"drawn_on": "cpu", "hidden": 2}, "hidden: does not belong to a checkpoint of LLaMA"),
    ],
)
def test_arguments(tmp_path, options, message):
    source = write_folder(tmp_path / "in")
    refused(source, tmp_path, message, ArgumentError, **options)


@pytest.mark.parametrize("alpha", [None, 0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_nothing_says(tmp_path, alpha):
    source = write(tmp_path, peft_tensors())
    refused(source, tmp_path, "lora_alpha: ", ArgumentError, drawn_on="cpu", lora_alpha=alpha)


@pytest.mark.parametrize("part", ["weight", "seed", "coefficients"])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_missing_partner(tmp_path, factor, part):
    tensors = peft_tensors()
    del tensors[f"base_model.model.layers.1.q.{factor}.{part}"]
    message = f"base_model.model.layers.1.q: has no {factor} {part}"
    refused(write_folder(tmp_path / "in", tensors), tmp_path, message, drawn_on="cpu")


@pytest.mark.parametrize(
    ("part", "value", "error", "message"),
    [
        ("coefficients", np.ones(5, F), AdapterError, "has 5 coefficients, the configuration"),
        ("coefficients", np.ones((6, 1), F), AdapterError, "must be a row of numbers"),
        ("coefficients", np.ones(0, F), AdapterError, "must be a row of numbers"),
        ("coefficients", np.ones(6, np.int32), AdapterError, "has dtype I32"),
        ("coefficients", np.ones(6, np.float16), AdapterError, "F16, but its weight has F32"),
        ("coefficients", np.full(6, np.nan, F), NotFiniteError, "infinite or NaN"),
        ("coefficients", np.full(6, 3e38, F), NotFiniteError, "is too large for F32"),
        ("weight", np.full((2, 10), np.inf, F), NotFiniteError, "infinite or NaN"),
        ("weight", np.ones(20, F), AdapterError, "a factor is a matrix"),
        ("weight", np.ones((0, 10), F), AdapterError, "a factor is a matrix"),
        ("weight", np.ones((3, 10), F), AdapterError, "but rank 3 by its lora_A"),
        ("seed", np.array([-1]), AdapterError, "is -1; the public code's are not negative"),
        ("seed", np.array([-(2**63)]), AdapterError, "are not negative"),
        ("seed", np.array([1, 2]), AdapterError, "a seed is one I64"),
        ("seed", np.array([1e10]), AdapterError, "any other dtype loses digits"),
        ("seed", np.array([1.0], F), AdapterError, "any other dtype loses digits"),
    ],
)
def test_a_tensor_of_another_form(tmp_path, part, value, error, message):
    source = write_folder(tmp_path / "in", {**peft_tensors(), f"{A}.{part}": value})
    refused(source, tmp_path, message, error, drawn_on="cpu")


def test_coefficients_of_another_count_without_a_configuration(tmp_path):
    tensors = {**peft_tensors(), f"{A}.coefficients": np.ones(5, F)}
    source = write(tmp_path, tensors)
    refused(source, tmp_path, "has 6 coefficients, ", drawn_on="cpu", lora_alpha=1.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "NOLA"}, "peft_type: is NOLA, the public code writes LORA"),
        ({"use_nola": False}, "use_nola: is False, the public code writes True"),
        ({"use_rslora": True}, "use_rslora: is True, which is not understood"),
        ({"modules_to_save": ["head"]}, "modules_to_save: is ['head'], which is not"),
        ({"bias": "all"}, "bias: is all, which is not understood"),
        ({"r": 3}, "has rank 2, the configuration says 3"),
        ({"nola_num_basis": 7}, "has 6 coefficients, the configuration says 7"),
        ({"lora_alpha": "4"}, "lora_alpha: is 4, must be a number"),
        ({"lora_alpha": True}, "lora_alpha: is True, must be a number"),
    ],
)
def test_a_configuration_that_says_otherwise(tmp_path, config, message):
    source = write_folder(tmp_path / "in", **config)
    refused(source, tmp_path, message, drawn_on="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | vit_tensors(), "holds tensors of different kinds"),
        (lambda t: t | gpt2_tensors(), "holds tensors of different kinds"),
        (lambda t: t | {"other": np.ones(3, F)}, "other: is not part of a NOLA layer"),
        (lambda t: t | {f"{A}.second.seed": np.array([1])}, "holds more than one adapter"),
        (lambda t: {n: v for n, v in t.items() if "weight" in n}, "is a LoRA without NOLA"),
        (lambda t: t | pair("layers.0.q"), "layers.0.q: occurs twice, with and without"),
        (lambda _: pair("q\x1b[2J"), "cannot be a module's name"),
        (lambda _: {"x": np.ones(3, F)}, "is not a checkpoint of the public NOLA code; it holds x"),
        (lambda _: {}, "it holds no tensors"),
        (
            lambda _: {"h.0.attn.nola_query.seed_a": np.array([1])},
            "a draft that does not run as published",
        ),
    ],
)
def test_what_is_no_checkpoint_or_more_than_one(tmp_path, change, message):
    source = write_folder(tmp_path / "in", change(peft_tensors()))
    refused(source, tmp_path, message, drawn_on="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: "h.1.attn.nola_value" not in n, "h.1: has no attn.nola_value; the public code"),
        (lambda n: "h.0.attn.nola_query" not in n, "h.0: has no attn.nola_query; the public code"),
    ],
)
def test_gpt2_without_a_partner(tmp_path, change, message):
    tensors = {name: value for name, value in gpt2_tensors().items() if change(name)}
    refused(write(tmp_path, tensors), tmp_path, message, drawn_on="cpu", lora_alpha=1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (pair("h.2.other"), "holds tensors of different kinds"),
        ({"h.0.attn.nola_query.bias": np.ones(3, F)}, "is not part of a NOLA layer"),
        (
            pair("h.2.attn.nola_query", 8, 9) | pair("h.2.attn.nola_value", 8, 9),
            "has 8 inputs and 9 outputs",
        ),
        (
            pair("h.2.attn.nola_query", 8, 8) | pair("h.2.attn.nola_value", 9, 9),
            "they are the same",
        ),
        (pair("h.2.mlp.p1_nola", 8, 32, num_basis=7), "has 7 coefficients"),
    ],
)
def test_gpt2_of_another_form(tmp_path, extra, message):
    source = write(tmp_path, gpt2_tensors() | extra)
    refused(source, tmp_path, message, drawn_on="cpu", lora_alpha=1)


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (changed("fc1_A_001", lambda v: v[:9]), AdapterError, "has 9 values, must have 10"),
        (changed("fc1_A_001", np.negative), MismatchError, "records another basis than the first"),
        (changed("fc1_A_000", lambda v: v * F(np.nan)), NotFiniteError, "infinite or NaN"),
        (
            changed("fc2_beta_001", lambda v: v[:4]),
            AdapterError,
            "public code has the same number in every",
        ),
        (changed("fc1_alpha_000", lambda v: v[:0]), AdapterError, "must be a row of numbers"),
        (changed("fc2_alpha_000", lambda v: v * F(np.inf)), NotFiniteError, "infinite or NaN"),
        (changed("fc_12in_4out", lambda v: v.T), AdapterError, "has shape [12, 4]"),
        (lambda t: t | {"fc_3in_1out": np.ones((1, 3), F)}, AdapterError, "has 2 heads"),
        (
            lambda t: t | {"fc1_A_0000": np.ones(10, F)},
            AdapterError,
            "is not something that the public",
        ),
        (
            lambda t: t | {"head.bias": np.ones(4, F)},
            AdapterError,
            "is not something that the public",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != "fc1_A_001"},
            AdapterError,
            "fc1_A_001: is missing, but the other tensors",
        ),
        (
            lambda t: {n: v for n, v in t.items() if not n.startswith("fc_")},
            AdapterError,
            "has 0 heads",
        ),
    ],
)
def test_a_vision_transformer_of_another_form(tmp_path, change, error, message):
    refused(write(tmp_path, change(vit_tensors())), tmp_path, message, error)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 2}, MismatchError, "with rank 2; they fit a basis drawn on a CPU with rank 3"),
        ({"gpu": "t4"}, MismatchError, "drawn on a GPU of 160 blocks (t4); they fit a basis drawn"),
        ({"rank": 0}, ArgumentError, "is 0, must be 1..1024"),
        ({"hidden": 0}, ArgumentError, "hidden: is 0"),
        ({"lora_alpha": 1.0}, ArgumentError, "does not belong to a checkpoint of vision"),
        ({"check": "x"}, ArgumentError, "is not needed: this checkpoint records its basis"),
    ],
)
def test_a_vision_transformer_with_other_arguments(tmp_path, options, error, message):
    refused(write(tmp_path, vit_tensors()), tmp_path, message, error, **options)


def test_a_record_of_another_seed(tmp_path):
    tensors = vit_tensors()
    other = next(DrawnOn.parse("cpu").generator(1).uniform(10, 0.1))
    tensors |= {"fc1_A_000": other, "fc1_A_001": other}
    message = "no rank up to 1024 fits, on a CPU or a GPU"
    refused(write(tmp_path, tensors), tmp_path, message, MismatchError)


@pytest.mark.parametrize("place", ["in/out", "in", "in/new/out", "there"])
@pytest.mark.parametrize("force", [False, True])
def test_where_an_output_cannot_be(tmp_path, place, force):
    source = write_folder(tmp_path / "in")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    options = {"drawn_on": "cpu", "force": force}
    refused(source, tmp_path, "", OutputError, output=tmp_path / place, **options)


def test_force_replaces_an_earlier_output(tmp_path):
    source = write_folder(tmp_path / "in")
    convert_checkpoint(source, tmp_path / "out", gpu="t4")
    before = snapshot(tmp_path / "out")
    refused(source, tmp_path, "exists", OutputError, drawn_on="cpu")
    convert_checkpoint(source, tmp_path / "out", drawn_on="cpu", force=True)
    assert snapshot(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FormatError, "cannot be opened"),
        (b"", FormatError, "too few for a safetensors file"),
        (b"no tensors at all", FormatError, "not a safetensors file"),
    ],
)
def test_what_is_no_container(tmp_path, content, error, message):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    refused(path, tmp_path, message, error, drawn_on="cpu")


def test_folders_without_tensors_and_links_out_of_them(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "has no adapter_model.safetensors")
    source = write_folder(tmp_path / "in")
    (source / "adapter_model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (source / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    refused(source, tmp_path, "a link that leads out", NolaEdgeError, drawn_on="cpu")


def test_a_configuration_in_two_readings(tmp_path):
    source = write_folder(tmp_path / "in")
    text = (source / "adapter_config.json").read_text()
    (source / "adapter_config.json").write_text(text[:-1] + ', "lora_alpha": 5}')
    refused(source, tmp_path, "duplicate key 'lora_alpha'", FormatError, drawn_on="cpu")


def test_a_checkpoint_that_changes_meanwhile(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "in")
    read = SafetensorsFile.read
    file = source / "adapter_model.safetensors"

    def touched(self, name):
        file.touch()
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", touched)
    refused(source, tmp_path, "changed while it was read", NolaEdgeError, drawn_on="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gpu": "a100"}, "beyond 2**31 - 1 torch draws"), ({"drawn_on": "cpu"}, "no machine could")],
)
def test_memory_for_a_basis_of_absurd_size(tmp_path, options, message):
    num_basis, inputs = (2**16, 2**14) if "gpu" in options else (2**18, 2**22 + 1)
    tensors = pair("base_model.model.q", inputs, 1, rank=1, num_basis=num_basis)
    source = write_folder(tmp_path / "in", tensors, r=1, nola_num_basis=num_basis)
    size = sum(file.stat().st_size for file in source.iterdir())
    tracemalloc.start()
    try:
        refused(source, tmp_path, message, **options)
        assert tracemalloc.get_traced_memory()[1] < 4 * size + 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{"drawn_on": "cpu"}, {"gpu": "a100"}])
def test_memory_stays_flat(tmp_path, options):
    """The basis of one factor, 64 MB, would not fit into what is used."""
    tensors = pair("base_model.model.q", 4096, 64, rank=16, num_basis=256)
    source = write_folder(tmp_path / "in", tensors, r=16, nola_num_basis=256)
    tracemalloc.start()
    try:
        convert_checkpoint(source, tmp_path / "out", num_threads=1, **options)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_the_configuration_that_is_written(tmp_path):
    mlp = pair("h.0.mlp.p1_nola", 8, 32) | pair("h.1.mlp.p1_nola", 8, 32)
    tensors = {n.removeprefix("module.transformer."): v for n, v in gpt2_tensors().items()}
    source = write(tmp_path, tensors | mlp | pair("h.0.mlp.p2_nola", 32, 8))
    convert_checkpoint(source, tmp_path / "out", drawn_on="cpu", lora_alpha=1.5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (2, 1.5, True)
    fused = {"h.0.attn.c_attn": 4, "h.1.attn.c_attn": 4}
    assert config["rank_pattern"] == fused
    assert config["alpha_pattern"] == dict.fromkeys(fused, 3.0)
    written = load_all(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: v.shape for n, v in written.items() if "h.0." in n} == {
        "base_model.model.h.0.attn.c_attn.lora_A.weight": (4, 8),
        "base_model.model.h.0.attn.c_attn.lora_B.weight": (24, 4),
        "base_model.model.h.0.mlp.c_fc.lora_A.weight": (2, 8),
        "base_model.model.h.0.mlp.c_fc.lora_B.weight": (32, 2),
        "base_model.model.h.0.mlp.c_proj.lora_A.weight": (2, 32),
        "base_model.model.h.0.mlp.c_proj.lora_B.weight": (8, 2),
    }


def test_a_head_without_classes(tmp_path):
    """Its width is a claim that no byte of the file stands for."""
    tensors = vit_tensors()
    del tensors["fc_12in_4out"]
    tensors["fc_60000000in_0out"] = np.empty((0, 60_000_000), F)
    refused(write(tmp_path, tensors), tmp_path, "has shape [0, 60000000]", drawn_on="cpu")


@pytest.mark.parametrize("text", ["1e400", "9" * 400, '"\\ud800"'])
@pytest.mark.parametrize("field", ["lora_alpha", "base_model_name_or_path"])
def test_a_configuration_that_could_not_be_written_again(tmp_path, field, text):
    source = write_folder(tmp_path / "in", **{field: "HERE"})
    path = source / "adapter_config.json"
    path.write_text(path.read_text().replace('"HERE"', text))
    refused(source, tmp_path, f"{path.name}: {field}: ", FormatError, drawn_on="cpu")


def test_an_alpha_that_would_overflow_on_the_way(tmp_path):
    """Query and value become one LoRA of twice the rank, and of twice the alpha."""
    source = write(tmp_path, gpt2_tensors())
    message = "lora_alpha: is 1e+308, must be positive, and at most 1e30"
    refused(source, tmp_path, message, ArgumentError, drawn_on="cpu", lora_alpha=1e308)
