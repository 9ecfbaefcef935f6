"""A base and a checkpoint of each kind."""

import pytest

from tests.adapters.public_nola.checkpoints import (
    gpt2_base,
    gpt2_mlp,
    gpt2_tensors,
    tiny_checkpoint,
    vit_base,
    vit_tensors,
)
from tests.conftest import write_safetensors


@pytest.fixture(params=["llama", "gpt2", "vit"])
def kind(request, tmp_path, tiny):
    """A base, a checkpoint, and how to load it."""
    if request.param == "llama":
        return tiny[0], tiny_checkpoint(tmp_path / "in"), {"drawn_on": "t4"}
    if request.param == "gpt2":
        write_safetensors(tmp_path / "in.safetensors", gpt2_tensors() | gpt2_mlp())
        options = {"drawn_on": "cpu", "lora_alpha": 4}
        return gpt2_base(tmp_path / "gpt2.safetensors"), tmp_path / "in.safetensors", options
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    return vit_base(tmp_path / "vit.safetensors"), tmp_path / "in.safetensors", {}
