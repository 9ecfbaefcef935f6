"""What inspect says, in terminals of all widths and encodings."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.adapters.statistics import ASCII_LEVELS, BLOCKS, Distribution, patterns
from nola_edge.cli import inspection
from nola_edge.cli.output import human_bytes
from nola_edge.demo.synthetic import llama_7b, trained_adapter
from tests.adapters.test_vera import vera_files
from tests.cli.test_cli import run
from tests.conftest import MODULES, load_all, write_safetensors
from tests.lora_folders import factors, with_magnitudes, write_lora

IN_ASCII = {"PYTHONIOENCODING": "ascii"}


def configure(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def named(tiny, monkeypatch):
    """An adapter as PEFT saves one: with its base's name, its task, and a card."""
    base, adapter = tiny
    monkeypatch.chdir(base.parent)
    configure(adapter, base_model_name_or_path="meta-llama/Llama-3-8B", task_type="CAUSAL_LM")
    (adapter / "README.md").write_text("a card " * 1000)
    (adapter / "checkpoint-100").mkdir()
    (adapter / "checkpoint-100" / "optimizer.pt").write_bytes(bytes(10000))
    return base, adapter


def test_what_it_says(named):
    lines = run("inspect", "adapter", "--base", "base", COLUMNS="100").stdout.splitlines()
    files = [named[1] / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    size = human_bytes(sum(file.stat().st_size for file in files))
    assert lines[0] == f"adapter       adapter ({size})"
    assert lines[1:10] == [
        "base          meta-llama/Llama-3-8B",
        "task          CAUSAL_LM",
        "fingerprints  checked: basis, modules, shapes; not recorded: base",
        "modules       3 in 2 patterns",
        "  layers.*.q  2 x (24 x 40)",
        "  layers.0.v  1 x (40 x 24)",
        "factors       rank 4, 10 + 10 coefficients each, rademacher basis, seed 11",
        "scaling       2 = lora_alpha / r x beta_unit 2",
        "coefficients  60 (240 B as F32)",
    ]
    assert re.fullmatch(
        r"alpha         -[\d.]+ .{24} \+[\d.]+  mean .*, std .*, no zeros", lines[10]
    )
    assert lines[12:] == [
        "compression   3.2x fewer numbers than LoRA r = 1 (192)",
        "              51.2x fewer numbers than LoRA r = 16 (3,072)",
        "              48.0x fewer numbers than the full difference (2,880)",
    ]


def test_a_packed_file_says_the_same(named, tmp_path):
    run("pack", "adapter", "-o", "small.nola")
    lines = run("inspect", "small.nola", COLUMNS="100").stdout.splitlines()
    size = human_bytes((tmp_path / "small.nola").stat().st_size)
    assert lines[0] == f"adapter       small.nola ({size}, packed)"
    assert lines[1] == "base          meta-llama/Llama-3-8B"
    assert "  layers.*.q  2" in lines
    assert lines[-1] == "compression   give --base to compare with LoRA and full fine-tuning"


def test_fingerprints_that_are_not_there_or_not_checked(tiny):
    base, adapter = tiny
    assert "not checked without --base: shapes; not recorded: base" in run(
        "inspect", adapter, COLUMNS="100"
    ).stdout  # fmt: skip
    configure(adapter, basis_fingerprint=None, base_fingerprint="0123456789abcdef")
    done = run("inspect", adapter, "--base", base, "--no-check-base", "--json")
    assert json.loads(done.stdout)["fingerprints"] == {
        "basis": "missing", "modules": "checked", "shapes": "checked", "base": "unchecked",
    }  # fmt: skip


def test_json_carries_everything(named):
    base, adapter = named
    data = json.loads(run("inspect", adapter, "--base", base, "--json", "--modules").stdout)
    assert data["base_model_name_or_path"] == "meta-llama/Llama-3-8B"
    assert data["task_type"] == "CAUSAL_LM"
    assert data["coefficients"] == 60
    assert data["compression"] == {
        "coefficients": 60, "lora_r1": 192, "lora_r16": 3072, "full": 2880,
    }  # fmt: skip
    assert sum(data["alpha"]["histogram"]) == 30
    assert data["patterns"][0] == {
        "name": "layers.*.q", "count": 2, "shapes": [{"shape": [24, 40], "count": 2}],
    }  # fmt: skip
    assert {name: tuple(shape) for name, shape in data["shapes"].items()} == MODULES
    assert set(data["largest"]) == set(data["modules"]) == set(MODULES)
    assert data["config"]["target_modules"]
    assert not data["packed"]


def test_whole_tensors_have_their_rows(tiny):
    adapter = tiny[1]
    tensors = load_all(adapter / "adapter_model.safetensors")
    stored = tensors["base_model.model.layers.0.q.nola_alpha"]
    tensors["base_model.model.score.weight"] = stored.reshape(5, 2)
    write_safetensors(adapter / "adapter_model.safetensors", tensors)
    configure(adapter, modules_to_save=["score"])
    assert "\nwhole tensors 1\n  score.weight  1 x (5 x 2)\n" in run("inspect", adapter).stdout


@pytest.mark.parametrize("environment", [{}, IN_ASCII], ids=["utf-8", "ascii"])
@pytest.mark.parametrize("number", [1, 3, 224])
def test_it_fits_and_breaks_no_word(tmp_path, monkeypatch, number, environment):
    shapes = {1: {"layers.0.q": (24, 40)}, 3: MODULES, 224: llama_7b().linears()}[number]
    adapter = trained_adapter(shapes, r=16, num_basis=64, seed=2**62 + 1)
    adapter.save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    command = ["inspect", "adapter", "--modules"]

    def shown(columns):
        text = run(*command, COLUMNS=str(columns), **environment).stdout
        assert max(map(len, text.splitlines())) <= columns
        return text

    text = shown(60)
    for columns in (80, 120):
        assert shown(columns).split() == text.split()
    assert text.isascii() == bool(environment)
    assert "?" not in text
    assert text.count(".q_proj") == (33 if number == 224 else 0)


def test_a_name_longer_than_the_terminal_is_wrapped_at_a_dot():
    name = ".".join(["a_rather_long_part"] * 6)
    rows = [(name, "6 x (1024 x 1024)"), ("short", "6 x (1 x 1)")]
    assert list(inspection._table(rows, 60)) == [
        "  " + "a_rather_long_part." * 3,
        "  " + "a_rather_long_part." * 2 + "a_rather_long_part",
        "      6 x (1024 x 1024)",
        "  short  6 x (1 x 1)",
    ]


def test_hundreds_of_patterns_are_cut():
    lines = list(inspection._table([(f"module{i}", "1") for i in range(300)], 60))
    assert len(lines) == 21
    assert lines[-1] == "  and 280 more: --json has all"


LAYER_NAME_EXPERT = st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.integers(0, 3))


@given(st.lists(LAYER_NAME_EXPERT, min_size=1, unique=True))
def test_patterns_cover_every_module_once(parts):
    shapes = {f"l.{layer}.{name}.{expert}": (len(name), layer % 3) for layer, name, expert in parts}
    found = patterns(shapes, shapes)
    assert sum(pattern.count for pattern in found) == len(shapes)
    for pattern in found:
        expression = re.escape(pattern.name).replace(r"\*", r"\d+")
        members = [name for name in shapes if re.fullmatch(expression, name)]
        assert len(members) >= pattern.count
        assert sum(pattern.shapes.values()) == pattern.count
        assert ("*" in pattern.name) == (pattern.count > 1)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any))
def test_both_pictures_show_where_anything_is(counts):
    drawn = Distribution(sum(counts), 0, 0.0, 1.0, -1.0, 1.0, tuple(counts))
    for levels in (BLOCKS, ASCII_LEVELS):
        picture = drawn.picture(levels)
        assert [sign != " " for sign in picture] == [count > 0 for count in counts]
        assert picture[counts.index(max(counts))] == levels[-1]


@pytest.mark.parametrize(("dora", "method"), [(False, "LoRA"), (True, "DoRA")])
def test_the_method_is_named(tmp_path, dora, method):
    tensors = with_magnitudes(factors()) if dora else factors()
    folder = write_lora(tmp_path / "l", tensors, use_dora=dora)
    assert f"\nmethod        {method}\n" in run("inspect", folder).stdout
    assert json.loads(run("inspect", folder, "--json").stdout)["method"] == method


def test_shapes_that_an_adapter_does_not_record_are_the_base_s(tiny, tmp_path):
    """As VeRA's, whose projections are shared; without a base nothing is said of them."""
    base, folder = tiny[0], vera_files(MODULES).write(tmp_path / "v")
    with_base = run("inspect", folder, "--base", base, "--modules").stdout
    assert re.search(r"layers\.\*\.q +2 x \(24 x 40\)", with_base)
    assert re.search(r"layers\.0\.v +40 x 24: rank", with_base)
    alone = run("inspect", folder, "--modules").stdout
    assert "()" not in alone
    assert re.search(r"layers\.\*\.q +2$", alone, re.MULTILINE)
    assert re.search(r"layers\.0\.v +rank", alone)
    found = json.loads(run("inspect", folder, "--base", base, "--json").stdout)
    assert found["modules"]["layers.0.v"]["shape"] == [40, 24]
