"""``nola-edge convert`` as a user or a script meets it."""

import json

import pytest

from tests.adapters.public_nola.checkpoints import gpt2_tensors, vit_tensors, write_folder
from tests.cli.test_cli import run
from tests.conftest import snapshot, write_safetensors


def test_help_teaches_with_examples_and_the_lines_that_record():
    done = run("convert", "--help")
    assert done.returncode == 0
    assert "Example: nola-edge convert" in done.stdout
    assert '.cpu().contiguous()\n  save_file({"LAYER.lora_A.first"' in done.stdout
    assert "convert" in run("--help").stdout


def test_a_folder_and_how_to_check_it(tmp_path):
    write_folder(tmp_path / "in")
    done = run("convert", tmp_path / "in", "--gpu", "a100", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    first, basis, check = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/out: exact LoRA of 2 modules, rank 2, ")
    assert first.endswith("of 24 coefficients (LLaMA (PEFT))")
    assert basis == (
        "basis: drawn on a GPU of 864 blocks (a100); not checked, because nothing records it"
    )
    assert check.startswith('to check it, run this where it was trained: python -c "import torch, ')
    assert "torch.manual_seed(9999999999); w = torch.empty(6, 12, 2, dtype=torch.float32" in check
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert config["target_modules"] == ["layers.0.q", "layers.1.q"]
    assert config["base_model_name_or_path"] == "base"


def test_json_of_a_vision_transformer(tmp_path):
    write_safetensors(tmp_path / "vit.safetensors", vit_tensors())
    arguments = ["convert", tmp_path / "vit.safetensors", "-o", tmp_path / "out"]
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["checked"], report["drawn_on"], report["rank"]) == (2, "a CPU", 3)
    assert report["head"]
    assert report["how_to_check"] is None
    done = run(*arguments, "--force")
    assert "basis: drawn on a CPU; 2 recorded agree" in done.stdout
    assert "head: its weight is in head.safetensors" in done.stdout


def test_gpt2_by_the_size_of_the_gpu(tmp_path):
    base = {
        "module.transformer.wte.weight": gpt2_tensors()[
            "module.transformer.h.0.attn.nola_query.lora_A.weight"
        ]
    }
    write_safetensors(tmp_path / "gpt2.safetensors", gpt2_tensors() | base)
    done = run(
        "convert", tmp_path / "gpt2.safetensors", "-o", tmp_path / "out", "--drawn-on", "cuda",
        "--multiprocessors", 84, "--threads-per-multiprocessor", 1536, "--lora-alpha", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out: 1 tensors of the base" in done.stdout
    assert "a GPU of 504 blocks (a40, rtx-a6000)" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["{in}", "-o", "{tmp}/out"],
        ["{in}", "-o", "{tmp}/out", "--drawn-on", "cuda"],
        ["{in}", "-o", "{tmp}/out", "--gpu", "b7"],
        ["{in}", "-o", "{in}/out", "--drawn-on", "cpu"],
        ["{in}", "--drawn-on", "cpu"],
        ["{in}", "-o", "{tmp}/out", "--drawn-on", "cpu", "--threads", "0"],
        ["{in}", "-o", "{tmp}/out", "--drawn-on", "cpu", "--check", "{tmp}/absent"],
        ["{tmp}/absent", "-o", "{tmp}/out", "--drawn-on", "cpu"],
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(tmp_path, arguments):
    write_folder(tmp_path / "in")
    before = snapshot(tmp_path)
    names = {"in": tmp_path / "in", "tmp": tmp_path}
    done = run("convert", *(argument.format(**names) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("nola-edge: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()
    assert done.stdout == ""
    assert snapshot(tmp_path) == before
