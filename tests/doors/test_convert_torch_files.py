"""Files of torch.save: tensors are taken from them, and nothing else ever happens."""

import importlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

import nola_edge.convert.torch_file as torch_file
from nola_edge.convert import convert_checkpoint
from nola_edge.convert.source import Source
from nola_edge.errors import FormatError
from tests.conftest import snapshot
from tests.convert.checkpoints import peft_tensors


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tensors():
    return {name: torch.from_numpy(values) for name, values in peft_tensors().items()}


def refused(path, message, **options):
    before = snapshot(path.parent)
    with pytest.raises(FormatError) as caught:
        convert_checkpoint(
            path, path.parent / "out", drawn_on="cpu", **{"lora_alpha": 1.0, **options}
        )
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(path.parent) == before


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_tensors_are_read_as_they_are(tmp_path, kind):
    saved = {
        "matrix": torch.arange(12).reshape(3, 4).t().to(kind),
        "scalar": torch.tensor(7).to(kind),
        "part": torch.arange(9).to(kind)[2:5],
        "empty": torch.empty(0, 3, dtype=kind),
        "parameter": torch.nn.Parameter(torch.ones(2).to(kind), requires_grad=False),
    }
    torch.save(saved, tmp_path / "x.pt")
    with Source(tmp_path / "x.pt") as source:
        for name, value in saved.items():
            read = source._file.read(name)
            assert read.shape == tuple(value.shape)
            assert np.array_equal(read.astype(np.float64), value.double().detach().numpy())


@pytest.mark.parametrize("outer", ["model_state_dict", "state_dict", None])
def test_where_the_tensors_are(tmp_path, outer):
    saved = tensors() if outer is None else {outer: tensors(), "step": 3}
    torch.save(saved, tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", drawn_on="cpu", lora_alpha=1.0)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_code_is_never_run(tmp_path):
    mark = tmp_path / "ran"
    torch.save({**tensors(), "extra": Bomb(mark)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "needs pickle, which could run code and is never used")
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"x": Bomb(mark)}))
    refused(tmp_path / "y.pt", "save its tensors with safetensors.torch.save_file")
    assert not mark.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert mark.exists()  # so the file was what it claims


def test_the_format_before_zip(tmp_path):
    torch.save(tensors(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "x.pt", "of torch before 1.6")


@pytest.mark.parametrize("cut", [40, 2000, 1])
def test_a_truncated_file(tmp_path, cut):
    buffer = io.BytesIO()
    torch.save(tensors(), buffer)
    data = buffer.getvalue()
    (tmp_path / "x.pt").write_bytes(data[:cut] if cut > 1 else data[:-1])
    refused(tmp_path / "x.pt", "is not in the zip format of torch.save")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    refused(tmp_path / "x.pt", "torch cannot read it: ")


def test_a_compressed_archive(tmp_path):
    """A kilobyte of it may stand for a megabyte."""
    torch.save(tensors(), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    refused(tmp_path / "x.pt", "is compressed within its archive")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(2**45), "which is no plain tensor of the file's"),
        (torch.zeros(1).expand(2**20, 2**20), "which is no plain tensor of the file's"),
        (torch.eye(3).to_sparse(), "holds more than plain tensors"),
        (torch.empty(2**40, device="meta"), "holds more than plain tensors"),
    ],
)
def test_elements_that_no_byte_stands_for(tmp_path, value, message):
    torch.save({**tensors(), "extra": value}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", message)


@pytest.mark.parametrize("value", [[torch.ones(3)], torch.ones(3), "text"])
def test_what_is_no_mapping(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "not a mapping from names to tensors")


def test_torch_that_is_missing_or_too_old(tmp_path, monkeypatch):
    torch.save(tensors(), tmp_path / "x.pt")
    with monkeypatch.context() as patch:
        patch.setattr(torch_file, "find_spec", lambda _: None)
        refused(tmp_path / "x.pt", "torch is not installed: pip install torch")
    for version in ("2.9.1+cu128", "1.13.0"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("torch"), "__version__", version)
            refused(tmp_path / "x.pt", f"torch {version} has a reader that a file can attack")


class Claims:
    """Asks for memory that no byte of the file stands for, by a name that torch allows."""

    def __reduce__(self):
        return bytearray, (3_000_000_000,)


def test_what_torch_would_make_beside_tensors_is_never_made(tmp_path):
    torch.save({"a": Claims(), **tensors()}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "holds more than plain tensors (__builtin__ bytearray)")


@pytest.mark.parametrize("view", [torch.Tensor.conj, lambda t: t.conj().imag], ids=["conj", "neg"])
def test_views_that_change_their_bytes_are_refused(tmp_path, view):
    name = next(name for name in tensors() if name.endswith("lora_A.weight"))
    value = view(torch.ones(2, 10, dtype=torch.complex64))
    torch.save({**tensors(), name: value}, tmp_path / "x.pt")
    before = snapshot(tmp_path)
    with pytest.raises(FormatError) as caught:
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", drawn_on="cpu", lora_alpha=1.0)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before
