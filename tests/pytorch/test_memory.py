"""Finding the file behind a tensor."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nola_edge.errors import ChangedError
from nola_edge.models.mapped_memory import MappedFiles, byte_view

TENSORS = {
    "a": torch.arange(5000, dtype=torch.float32).reshape(50, 100),
    "b": torch.ones(7, 3, dtype=torch.bfloat16),
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "with a space.safetensors"
    save_file(TENSORS, path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are known on Linux alone")
def test_mapped_tensors_are_found_where_they_are(saved):
    files = MappedFiles([saved])
    with safe_open(saved, "pt") as opened:
        for name, wanted in TENSORS.items():
            tensor = opened.get_tensor(name)
            file, offset = files.find(tensor)
            found = torch.empty_like(wanted)
            file.read_into(byte_view(found), offset)
            assert torch.equal(found, wanted)
            file, part = files.find(tensor[2:4])
            assert part == offset + 2 * tensor.stride(0) * tensor.element_size()
    files.check_unchanged()
    with saved.open("ab") as grown:
        grown.write(b"x")
    with pytest.raises(ChangedError):
        files.check_unchanged()
    files.close()


def test_other_memory_is_not_found(saved, tmp_path):
    with safe_open(saved, "pt") as opened:
        mapped = opened.get_tensor("a")
        assert MappedFiles([saved]).find(mapped.clone()) is None
        assert MappedFiles([tmp_path / "other"]).find(mapped) is None
        assert MappedFiles([]).find(mapped) is None
        os.rename(saved, tmp_path / "renamed")
        assert MappedFiles([saved]).find(mapped) is None


def test_the_bytes_of_a_tensor_are_writable():
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
    view = byte_view(tensor)
    assert len(view) == 12
    view[0:2] = b"\x80\x3f"
    assert tensor[0, 0] == 1


def test_a_mapping_that_was_written_to_is_no_longer_the_file(saved):
    """Pages of a private mapping are this process's own once it writes to them."""
    with safe_open(saved, "pt") as opened:
        tensor = opened.get_tensor("a")
        assert (MappedFiles([saved]).find(tensor) is not None) == (sys.platform == "linux")
        tensor.mul_(3)
        assert MappedFiles([saved]).find(tensor) is None
