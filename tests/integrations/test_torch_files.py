"""What the refusal of a torch file prints turns it into the same tensors, and runs nothing else."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import snapshot
from tests.integrations.public_models import do_as_the_refusal_says


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def example():
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "weight": weight,
        "tied": weight,
        "strided": weight.t(),
        "part": weight[1, 1:3],
        "half": weight.bfloat16(),
        "seed": torch.tensor([9_999_999_999]),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize(
    ("outer", "zipped"),
    [("model_state_dict", True), ("state_dict", True), (None, True), (None, False)],
)
def test_every_tensor_arrives_as_it_was(tmp_path, monkeypatch, outer, zipped):
    monkeypatch.chdir(tmp_path)
    saved = example() if outer is None else {outer: example(), "step": 3}
    path = Path("it's a $(touch x) model.10.pt")
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    target = do_as_the_refusal_says(path)
    assert target == path.with_suffix(".safetensors")
    found = load_file(target)
    assert found.keys() == example().keys()
    for name, value in example().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert sorted(Path().iterdir()) == sorted([path, target])


def test_neither_command_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    torch.save({**example(), "extra": Bomb(mark)}, tmp_path / "x.pt")
    before = snapshot(tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        do_as_the_refusal_says(Path("x.pt"))
    assert snapshot(tmp_path) == before
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert mark.exists()  # so the file was what it claims
