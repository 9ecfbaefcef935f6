"""The bytes that were written when these checkpoints were converted before they were merged."""

import hashlib

import numpy as np
import pytest

from nola_edge.convert import convert_checkpoint
from nola_edge.dtypes import numpy_dtype
from tests.adapters.public_nola import checkpoints
from tests.conftest import write_safetensors

SEED = 11


def llama(dtype):
    return checkpoints.pair(
        "base_model.model.q", 300, 200, 8, 64, (5, 77), numpy_dtype(dtype)
    )  # larger than what a T4 draws in one turn


CASES = {
    "llama-cpu": (lambda: llama("F32"), {"drawn_on": "cpu", "lora_alpha": 0.3}),
    "llama-t4": (lambda: llama("F32"), {"gpu": "t4", "lora_alpha": 4}),
    "llama-bf16-older": (
        lambda: llama("BF16"),
        {"gpu": "t4", "older_torch": True, "lora_alpha": 16},
    ),
    "gpt2": (checkpoints.gpt2_tensors, {"gpu": "a100", "lora_alpha": 2.5}),
    "vit": (checkpoints.vit_tensors, {"hidden": 40}),
}
WRITTEN = {
    "llama-cpu": {
        "adapter_config.json": "95735916efa58c98",
        "adapter_model.safetensors": "7b203c002d92ed6a",
    },
    "llama-t4": {
        "adapter_config.json": "47abd038e2299262",
        "adapter_model.safetensors": "f04a3103a39af13d",
    },
    "llama-bf16-older": {
        "adapter_config.json": "b917c862d8f2e5c7",
        "adapter_model.safetensors": "933178056f9eb4bb",
    },
    "gpt2": {
        "adapter_config.json": "34cbffafb1d9f6ef",
        "adapter_model.safetensors": "0933ae68cae730b5",
    },
    "vit": {
        "adapter_config.json": "7977c1409efeff42",
        "adapter_model.safetensors": "488163e9de06cad1",
        "head.safetensors": "4a3d0f5bce5aa1d6",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_bytes(tmp_path, monkeypatch, case):
    monkeypatch.setattr(checkpoints, "RNG", np.random.RandomState(SEED))  # a frozen stream
    tensors, options = CASES[case]
    write_safetensors(tmp_path / "in.safetensors", tensors())
    convert_checkpoint(tmp_path / "in.safetensors", tmp_path / "out", **options)
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (tmp_path / "out").iterdir()
    }
    assert found == WRITTEN[case]
