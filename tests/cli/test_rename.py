"""``--rename``: adapters whose modules a base calls otherwise."""

import json

import numpy as np
import pytest

from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX
from tests.cli.in_process import call, refused
from tests.conftest import load_all, snapshot, write_safetensors
from tests.lora_folders import factors, write_lora

F = np.float32
TEXT = {"model.language_model.layers.0.up": (12, 8), "model.language_model.layers.1.up": (12, 8)}
VISION = {"model.visual.blocks.0.mlp.up": (10, 6)}
RENAME = ("--rename", "model.language_model=model", "--rename", "model.visual=visual")


@pytest.fixture
def towers(tmp_path):
    """A base whose two towers are called otherwise than the LoRA's modules."""
    rng = np.random.default_rng(0)
    names = {"model.layers.0.up": (12, 8), "model.layers.1.up": (12, 8)}
    names |= {"visual.blocks.0.mlp.up": (10, 6)}
    weights = {f"{n}.weight": rng.standard_normal(s).astype(F) for n, s in names.items()}
    write_safetensors(tmp_path / "base.safetensors", weights)
    return tmp_path / "base.safetensors", write_lora(tmp_path / "lora", factors(TEXT | VISION))


def test_merged_verified_and_exported(towers, tmp_path):
    out = tmp_path / "out.safetensors"
    assert call("merge", *towers, "-o", out, *RENAME).returncode == 0
    assert call("verify", out, *towers, *RENAME).returncode == 0
    before, after = load_all(towers[0]), load_all(out)
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    exported = tmp_path / "exported"
    done = call("export", "lora", towers[1], "--base", towers[0], "-o", exported, *RENAME)
    assert done.returncode == 0
    record = json.loads((exported / CONFIG_NAME).read_text())["tensors"]
    assert record["model.visual.blocks.0.mlp.up"] == "visual.blocks.0.mlp.up.weight"
    assert call("verify", out, towers[0], exported).returncode == 0  # it records the names


def test_inspected(towers):
    assert call("inspect", towers[1], "--base", towers[0], *RENAME).returncode == 0
    assert "no --base was given" in refused("inspect", towers[1], *RENAME)


def test_each_adapter_may_want_some_of_the_rules(towers, tmp_path):
    vision = write_lora(tmp_path / "vision", factors(VISION))
    given = (towers[0], towers[1], vision, "--each", *RENAME)
    assert call("merge", *given, "-o", tmp_path / "out").returncode == 0
    assert call("verify", tmp_path / "out", *given).returncode == 0


def test_the_refusal_says_what_would_do(towers, tmp_path):
    before = snapshot(tmp_path)
    line = refused("merge", *towers, "-o", tmp_path / "out.safetensors")
    assert "3 of 3 modules" in line
    assert " ".join(RENAME) in line
    assert "save a NOLA adapter again" in line
    assert "rename=" in line
    assert snapshot(tmp_path) == before


def test_a_rule_of_no_use(towers, tmp_path):
    before = snapshot(tmp_path)
    rules = (*RENAME, "--rename", "no.such=name")
    for command in (
        ("merge", *towers, "-o", tmp_path / "out.safetensors"),
        ("merge", *towers, "--each", "-o", tmp_path / "out"),
        ("verify", towers[0], *towers),
        ("inspect", towers[1], "--base", towers[0]),
        ("export", "lora", towers[1], "--base", towers[0], "-o", tmp_path / "out"),
    ):
        assert "'no.such' does not occur in any module name" in refused(*command, *rules)
    assert snapshot(tmp_path) == before


def test_a_rule_of_no_use_where_modules_are_missing(towers, tmp_path):
    before = snapshot(tmp_path)
    for new in ("no.such", "model.visual"):
        out = tmp_path / "out.safetensors"
        line = refused("merge", *towers, "-o", out, "--rename", f"{new}=visual")
        assert "modules of" in line
        said = "No module of the adapter has 'no.such' (--rename) in its name"
        assert (said in line) == (new == "no.such")
        assert ("model.language_model=model as well;" in line) == (new != "no.such")
        assert snapshot(tmp_path) == before


def test_a_trained_head_below_another_prefix(towers, tmp_path):
    """It takes its namesake's place, and is not added beside it; each refusal says how."""
    base = tmp_path / "wrapped.safetensors"
    stored = {f"language_model.{n}": t for n, t in load_all(towers[0]).items()}
    write_safetensors(base, {**stored, "language_model.lm_head.weight": np.zeros((5, 8), F)})
    head = {f"{PREFIX}lm_head.weight": np.ones((5, 8), F)}
    lora = write_lora(tmp_path / "head", factors(TEXT) | head, modules_to_save=["lm_head"])
    text = ("--rename", "model.language_model=language_model.model")
    given, out = (base, lora), tmp_path / "out.safetensors"
    before = snapshot(tmp_path)
    added = ("--rename", "lm_head=language_model.lm_head")
    assert " ".join((*text, *added)) in refused("merge", *given, "-o", out)
    line = refused("merge", *given, "-o", out, *text)
    assert "lm_head.weight: would be added from" in line
    assert " ".join(added) in line
    assert "--rename lm_head.weight=lm_head.weight keeps its name" in line
    assert snapshot(tmp_path) == before
    assert call("merge", *given, "-o", out, *text, *added).returncode == 0
    assert call("verify", out, *given, *text, *added).returncode == 0
    assert load_all(out).keys() == load_all(base).keys()
    assert (load_all(out)["language_model.lm_head.weight"] == 1).all()
    kept = ("--rename", "lm_head.weight=lm_head.weight")
    assert call("merge", *given, "-o", out, "--force", *text, *kept).returncode == 0
    assert (load_all(out)["lm_head.weight"] == 1).all()


@pytest.mark.parametrize("rule", ["model", "=x", "a..b=c", "model.visual=visual[3:2]"])
def test_what_is_no_rule(towers, tmp_path, rule):
    before = snapshot(tmp_path)
    line = refused("merge", *towers, "-o", tmp_path / "out.safetensors", "--rename", rule)
    assert "NEW=OLD" in line
    assert snapshot(tmp_path) == before


def test_a_gguf_file_has_names_of_its_own(towers, tmp_path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + bytes(60))
    given = (tmp_path / "base.gguf", towers[1])
    assert "--rename is for checkpoints" in refused(
        "merge", *given, "-o", tmp_path / "out.gguf", *RENAME
    )
