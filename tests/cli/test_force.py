"""What --force does not replace, and that it says which file is in the way."""

import pytest

from tests.cli.test_cli import run
from tests.conftest import snapshot

NEXT = ", so --force does not replace it; choose another name, or remove it yourself\n"
MERGE = ["merge", "base", "adapter"]
QUANTIZE = ["quantize", "adapter"]


@pytest.mark.parametrize(
    ("command", "files", "said"),
    [
        (MERGE, {"model.safetensors": "", "notes.txt": ""},
         "holds notes.txt, which is not part of such an output"),
        (MERGE, {"sub/thesis.tex": ""},
         "holds sub/thesis.tex, which is not part of such an output"),
        (MERGE, {".git/HEAD": "", "b": "", "c": ""},
         "holds .git and more, which is not part of such an output"),
        (MERGE, {"config.json": "{}"}, "holds config.json but no weights"),
        (MERGE, {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
         "holds adapter_config.json, which is not part of such an output"),
        (QUANTIZE, {"adapter_config.json": '{"peft_type": "NOLA"}', "README.md": ""},
         "holds README.md, which is not part of such an output"),
        (QUANTIZE, {"adapter_model.safetensors": ""}, "holds no adapter_config.json"),
        (QUANTIZE, {"adapter_config.json": '{"peft_type": "LORA"}'},
         "holds an adapter_config.json whose peft_type is not NOLA"),
        (QUANTIZE, {"adapter_config.json": "mine"},
         "holds an adapter_config.json that cannot be read"),
        (["export", "lora", "adapter", "--base", "base"], {"x\ny": ""},
         "holds x\\ny, which is not part of such an output"),
    ],
)  # fmt: skip
def test_the_file_in_the_way_is_named(tiny, tmp_path, monkeypatch, command, files, said):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = snapshot(tmp_path)
    done = run(*command, "-o", "out", "--force")
    assert done.returncode == 2
    assert done.stderr == f"nola-edge: {tmp_path}/out: {said}{NEXT}"
    assert snapshot(tmp_path) == before


def test_a_file_of_another_kind_is_not_replaced(tiny, tmp_path):
    path = tmp_path / "out.nola"
    path.write_text("precious")
    before = snapshot(tmp_path)
    done = run("pack", tiny[1], "-o", path, "--force")
    assert done.returncode == 2
    assert done.stderr == f"nola-edge: {path}: is not a packed adapter{NEXT}"
    assert snapshot(tmp_path) == before
