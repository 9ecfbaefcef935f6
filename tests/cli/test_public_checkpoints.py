"""Checkpoints of the public NOLA code in the place of an ADAPTER, on the command line."""

import json

import pytest

import nola_edge as ne
from tests.adapters.public_nola.checkpoints import (
    gpt2_base,
    gpt2_tensors,
    tiny_checkpoint,
    vit_base,
    vit_tensors,
    write_folder,
)
from tests.cli.in_process import call, refused
from tests.conftest import snapshot, write_safetensors
from tests.lora_folders import write_lora


def done(*arguments):
    result = call(*arguments)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def test_from_merge_to_verify(tmp_path, tiny):
    base, nola = tiny
    public, out = tiny_checkpoint(tmp_path / "in"), tmp_path / "out"
    text = done("merge", base, public, f"{nola}=0.5", "-o", out, "--drawn-on", "a100")
    assert "matrices are those of a GPU of 864 blocks (a100)" in " ".join(text.split())
    adapters = [ne.load_adapter(public, drawn_on="a100"), (ne.load_adapter(nola), 0.5)]
    ne.merge_checkpoint(base, adapters, tmp_path / "wanted")
    assert snapshot(out) == snapshot(tmp_path / "wanted")
    done("verify", out, base, public, f"{nola}=0.5", "--drawn-on", "a100")
    other = call("verify", out, base, public, f"{nola}=0.5", "--drawn-on", "cpu")
    assert other.returncode == 1


def test_each_names_outputs_by_the_checkpoints(tmp_path):
    for name, blocks in (("one", 2), ("two", 1)):
        tensors = {n: v for n, v in gpt2_tensors().items() if f".h.{blocks}." not in n}
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    base, files = gpt2_base(tmp_path / "base.safetensors"), sorted(tmp_path.glob("[ot]*"))
    device = ("--drawn-on", "cpu", "--lora-alpha", 2)
    done("merge", base, *files, "--each", "-o", tmp_path / "out", *device)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f.name for f in files]
    done("verify", tmp_path / "out", base, *files, "--each", *device)


def test_inspect(tmp_path):
    write_safetensors(tmp_path / "gpt2.safetensors", gpt2_tensors())
    device = ("--drawn-on", "cpu", "--lora-alpha", 2)
    text = done("inspect", tmp_path / "gpt2.safetensors", *device)
    assert "rank 4" in text
    found = json.loads(done("inspect", tmp_path / "gpt2.safetensors", "--json", *device))
    assert found["modules"]["transformer.h.0.attn.c_attn"] == {
        "rank": 4, "scaling": 1.0, "shape": [24, 8], "embedding": False,
    }  # fmt: skip


def test_export_lora_is_what_convert_writes(tmp_path):
    write_folder(tmp_path / "in")
    device = ("--drawn-on", "84x1536")
    text = done("export", "lora", tmp_path / "in", "-o", tmp_path / "lora", *device)
    assert text.startswith(f"{tmp_path}/lora: exact LoRA, ")
    done("convert", tmp_path / "in", "-o", tmp_path / "older", *device)
    gpu = ("--multiprocessors", 84, "--threads-per-multiprocessor", 1536)
    done("convert", tmp_path / "in", "-o", tmp_path / "oldest", "--drawn-on", "cuda", *gpu)
    assert snapshot(tmp_path / "lora") == snapshot(tmp_path / "older")
    assert snapshot(tmp_path / "lora") == snapshot(tmp_path / "oldest")


def test_a_vision_transformer_needs_no_device(tmp_path):
    write_safetensors(tmp_path / "vit.safetensors", vit_tensors())
    base = vit_base(tmp_path / "base.safetensors", hidden=20)
    output = tmp_path / "out.safetensors"
    text = done("merge", base, tmp_path / "vit.safetensors", "-o", output)
    assert "note: " in text
    assert "its trained head is not merged" in " ".join(text.split())
    text = done(
        "export", "lora", tmp_path / "vit.safetensors", "--base", base, "-o", tmp_path / "l"
    )
    assert "head.safetensors: the trained head's weight, without a bias" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "base", "public", "-o", "out"], "drawn_on: is needed for a checkpoint of the"),
        (
            ["merge", "base", "nola", "-o", "out", "--drawn-on", "cpu"],
            "--drawn-on and --lora-alpha are for checkpoints of the public NOLA code",
        ),
        (
            ["merge", "base", "lora", "nola", "-o", "out", "--lora-alpha", "2"],
            "--drawn-on and --lora-alpha are for checkpoints of the public NOLA code",
        ),
        (["merge", "base", "public", "-o", "out", "--drawn-on", "gpu"], "drawn_on: is 'gpu'; give"),
        (["verify", "base", "base", "public"], "drawn_on: is needed"),
        (["verify", "base", "base", "lora", "--drawn-on", "cpu"], "and none was given"),
        (["inspect", "public"], "drawn_on: is needed"),
        (["inspect", "lora", "--drawn-on", "cpu"], "lora: drawn_on: is for checkpoints of the"),
        (["export", "lora", "public", "-o", "out"], "drawn_on: is needed"),
        (["export", "lora", "nola", "-o", "out"], "how large its modules are: add --base BASE"),
        (["export", "lora", "lora", "-o", "out", "--revision", "x"], "and no --base was given"),
        (
            ["export", "lora", "public", "-o", "out", "--drawn-on", "cpu", "--lora-alpha", "5"],
            "lora_alpha: is 5.0, the configuration says 4",
        ),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(tmp_path, tiny, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").rename(tmp_path / "nola")
    tiny_checkpoint(tmp_path / "public")
    write_lora(tmp_path / "lora")
    before = snapshot(tmp_path)
    assert message in refused(*arguments)
    assert snapshot(tmp_path) == before
