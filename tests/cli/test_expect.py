"""``nola-edge pack --expect``, and what other commands say of it."""

from __future__ import annotations

import json
import shutil

import pytest

import nola_edge as ne
from tests.cli.in_process import call, refused
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.gguf.test_merge import adapter_of, arrays_of, write


def packed(*words):
    done = call("pack", *words)
    assert done.returncode == 0, done
    return done.stdout


def test_it_is_what_merge_and_hash_give(tiny, tmp_path):
    base, adapter = tiny
    write_safetensors(tmp_path / "one.safetensors", load_all(base))
    shutil.copytree(base, tmp_path / "elsewhere" / "base")
    nola = tmp_path / "x.nola"
    said = packed(
        adapter, "--expect", base, "--expect", tmp_path / "one.safetensors",
        "--expect", f"the same={tmp_path / 'elsewhere' / 'base'}", "-o", nola, "--threads", 2,
    )  # fmt: skip
    merged = {}
    for place, out in ((base, "merged"), (tmp_path / "one.safetensors", "merged.safetensors")):
        assert call("merge", place, nola, "-o", tmp_path / out).returncode == 0
        merged[place.name] = call("hash", tmp_path / out).stdout.strip()
    merged["the same"] = merged["base"]
    assert said.splitlines()[1:] == [
        f"  expects of {name}: {merged[name]}" for name in ("base", "one.safetensors", "the same")
    ]
    assert [result.sha256 for result in ne.Adapter.load(nola).expected] == [
        merged[name] for name in ("base", "one.safetensors", "the same")
    ]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_a_gguf_file(kind, tmp_path):
    write(tmp_path / "base.gguf", arrays_of(kind))
    adapter_of().save(tmp_path / "adapter")
    nola = tmp_path / "x.nola"
    said = packed(tmp_path / "adapter", "--expect", tmp_path / "base.gguf", "-o", nola, "--json")
    assert call("merge", tmp_path / "base.gguf", nola, "-o", tmp_path / "o.gguf").returncode == 0
    (found,) = json.loads(said)["expected"]
    assert (found["name"], found["kind"]) == ("base.gguf", "gguf")
    assert found["sha256"] == call("hash", tmp_path / "o.gguf").stdout.strip()


def test_another_base_later(tiny, tmp_path):
    """And one that has changed since, under its old name."""
    base, adapter = tiny
    shutil.copytree(base, tmp_path / "b")
    packed(adapter, "--expect", base, "-o", tmp_path / "1.nola")
    packed(tmp_path / "1.nola", "--expect", tmp_path / "b", "-o", tmp_path / "2.nola")
    first, second = ne.Adapter.load(tmp_path / "2.nola").expected
    assert (first.name, second.name, first.sha256) == ("base", "b", second.sha256)
    (base / "config.json").write_text("{}")
    packed(tmp_path / "2.nola", "--expect", base, "-o", tmp_path / "3.nola")
    found = ne.Adapter.load(tmp_path / "3.nola").expected
    assert [result.name for result in found] == ["b", "base"]
    assert found[1].sha256 != first.sha256


def test_nothing_else_is_written(tiny, tmp_path):
    before = snapshot(tmp_path)
    packed(tiny[1], "--expect", tiny[0], "-o", tmp_path / "x.nola")
    (tmp_path / "x.nola").unlink()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expect", "no/where"], "no/where"),
        (["--expect", "{base}", "--expect", "{base}"], "two bases are called base; name them: --e"),
        (["--expect", "={base}"], "lacks a name or a base; write BASE or NAME=BASE"),
        (
            ["--expect", "mine="],
            "--expect: 'mine=' lacks a name or a base; write BASE or NAME=BASE",
        ),
        (["--expect", ""], "--expect: '' lacks a name or a base"),
        (["--threads", "2"], "--threads is for merging: give it with --expect BASE"),
        (["--check-base"], "--check-base is for merging: give it with --expect BASE"),
        (["--no-check-base"], "--check-base is for merging: give it with --expect BASE"),
        (["--expect", "{adapter}"], "has an adapter but no model"),
        (["--expect", "{base}", "-o", "{base}/x.nola"], "lies inside the input"),
        (["--expect", "{base}", "-o", "{old}"], "exists already"),
        (["--expect", "{other}"], "base_fingerprint"),
    ],
)
def test_what_is_refused(tiny, tmp_path, words, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base, _ = tiny
    adapter = tmp_path / "recorded"
    ne.Adapter.create(
        MODULES, r=4, num_basis_a=4, num_basis_b=4, seed=1, lora_alpha=8, base=base
    ).save(adapter)
    tensors = load_all(base)
    tensors["layers.0.q.weight"] = -tensors["layers.0.q.weight"]
    write_safetensors(tmp_path / "other.safetensors", tensors)
    tiny_adapter().pack(tmp_path / "old.nola")
    places = {
        "base": base, "adapter": adapter, "old": tmp_path / "old.nola",
        "other": tmp_path / "other.safetensors",
    }  # fmt: skip
    before = snapshot(tmp_path)
    words = [word.format(**places) for word in words]
    output = [] if "-o" in words else ["-o", tmp_path / "x.nola"]
    assert said in refused("pack", adapter, *words, *output)
    assert snapshot(tmp_path) == before


def test_a_base_that_the_adapter_was_not_made_for(tiny, tmp_path):
    base, _ = tiny
    adapter = ne.Adapter.create(
        MODULES, r=4, num_basis_a=4, num_basis_b=4, seed=1, lora_alpha=8, base=base
    )
    adapter.save(tmp_path / "recorded")
    tensors = load_all(base)
    tensors["layers.0.q.weight"] = -tensors["layers.0.q.weight"]
    other = tmp_path / "other.safetensors"
    write_safetensors(other, tensors)
    words = ["--expect", other, "-o", tmp_path / "x.nola", "--no-check-base"]
    packed(tmp_path / "recorded", *words)
    merge = ["merge", other, tmp_path / "x.nola", "-o", tmp_path / "o.safetensors"]
    done = call(*merge, "--no-check-base")
    assert "the one that the adapter expects of other.safetensors" in done.stdout


def test_what_other_commands_say(tiny, tmp_path):
    base, adapter = tiny
    nola = tmp_path / "x.nola"
    packed(adapter, "--expect", base, "--expect", f"mine={base}", "-o", nola)
    said = call("inspect", nola).stdout
    assert "expects       known results of merging into base (folder), mine (folder)" in said
    found = json.loads(call("inspect", nola, "--json").stdout)["expected"]
    assert [entry["name"] for entry in found] == ["base", "mine"]
    assert found[0]["files"]["config.json"]
    assert "expects" not in call("inspect", adapter).stdout.replace(str(tmp_path), "")

    said = call("unpack", nola, "-o", tmp_path / "folder").stdout
    line = "  left out: what the adapter expects of base, mine; a folder has no place for them\n"
    assert line in said
    said = call("quantize", nola, "-o", tmp_path / "8.nola", "--json").stdout
    assert json.loads(said)["left_out"] == ["base", "mine"]
    assert ne.Adapter.load(tmp_path / "8.nola").expected == ()
