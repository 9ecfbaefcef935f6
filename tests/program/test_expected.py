"""A result that a packed adapter does not expect is refused, by both tools alike."""

import json

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.files.safetensors import SafetensorsFile
from tests.conftest import snapshot, tiny_adapter, write_safetensors, write_sharded

OF = "the base of é"


@pytest.fixture
def expecting(tiny, tmp_path):
    """A base, and an adapter that says what it gives with it."""
    base, adapter = tiny[0], tiny_adapter()
    adapter.pack(tmp_path / "a.nola", expect=[ne.expect_checkpoint(base, adapter, name=OF)])
    return base, tmp_path / "a.nola"


def flip(folder, tensor):
    """Change one bit of a tensor."""
    for path in folder.glob("*.safetensors"):
        with SafetensorsFile.open(path) as file:
            found = file.tensors.get(tensor)
        if found is not None:
            data = bytearray(path.read_bytes())
            data[found.start] ^= 1
            path.write_bytes(data)


def test_what_is_expected_is_said(tool, expecting, tmp_path):
    done = tool("merge", *expecting, "-o", tmp_path / "out")
    assert done.returncode == 0, done
    assert f"  the result is the one that the adapter expects of {OF}\n" in done.stdout
    assert "not checked" not in done.stdout
    done = tool("merge", *expecting, "-o", tmp_path / "again", "--json")
    found = json.loads(done.stdout)
    assert (found["expected_of"], found["base_checked"], found["notes"]) == (OF, True, [])
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "out")


def test_another_bit_of_the_base_is_refused(tool, expecting, tmp_path):
    """Where no fingerprint looks: in a tensor that the adapter does not change."""
    flip(expecting[0], "norm.weight")
    before = snapshot(tmp_path)
    said = tool.refused("merge", *expecting, "-o", tmp_path / "out")
    assert f"a.nola expects of {OF!r}: model-" in said
    assert "was damaged: get it again; to have it anyway, pass --no-check-result" in said
    assert snapshot(tmp_path) == before
    done = tool("merge", *expecting, "-o", tmp_path / "out", "--no-check-result")
    assert done.returncode == 0, done
    assert "  note: the result was not compared with what the adapter expects: --no" in done.stdout


def test_another_file_beside_the_weights_is_named(tool, expecting, tmp_path):
    (expecting[0] / "config.json").write_text("{}")
    said = tool.refused("merge", *expecting, "-o", tmp_path / "out")
    assert "config.json would have the SHA-256" in said
    assert "only files that are carried over from the base differ, not the weights" in said
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_and_another_kind_noted(tool, expecting, tmp_path):
    rng = np.random.default_rng(9)
    shapes = {"layers.0.q": (24, 40), "layers.0.v": (40, 24), "layers.1.q": (24, 40)}
    weights = {f"{n}.weight": rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    write_sharded(tmp_path / "other", weights, 1)
    before = snapshot(tmp_path)
    said = tool.refused("merge", tmp_path / "other", expecting[1], "-o", tmp_path / "out")
    assert f"a.nola: expected: is of {OF}, and this base, with the fingerprint " in said
    assert snapshot(tmp_path) == before
    write_safetensors(tmp_path / "other.safetensors", weights)
    base, out = tmp_path / "other.safetensors", tmp_path / "out.safetensors"
    done = tool("merge", base, expecting[1], "-o", out)
    assert done.returncode == 0, done
    assert f"note: the adapter expects results for {OF} only: the result was not" in done.stdout


def test_weighted_it_is_not_compared(tool, expecting, tmp_path):
    base, adapter = expecting
    done = tool("merge", base, f"{adapter}=0.5", "-o", tmp_path / "out")
    assert done.returncode == 0, done
    assert "expects, which is of a merge of it alone, with weight 1" in done.stdout


def test_inspect_says_the_same(nola, python_tool, expecting):
    wanted = python_tool("inspect", expecting[1], "--json")
    assert json.loads(nola("inspect", expecting[1], "--json").stdout) == json.loads(wanted.stdout)
    line = f"expects       known results of merging into {OF} (folder)\n"
    assert line in python_tool("inspect", expecting[1]).stdout
    assert line in nola("inspect", expecting[1]).stdout
