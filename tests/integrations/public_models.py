"""What the public NOLA code computes and saves, in torch and in our own words.

The judge of the conversion: it draws with torch's own generator, on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nola_edge.convert import convert_checkpoint
from nola_edge.errors import FormatError

SEEDS = (9_999_999_999, 5, 2**32 + 5, 4_000_000_001)


@contextlib.contextmanager
def seeded(seed):
    """Draw from torch's global generator, as the public code does, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class SeededLinear(nn.Module):
    """A matrix of a seed, coefficients and a frozen weight (the LLaMA and the GPT-2 code)."""

    def __init__(self, inputs, outputs, num_basis, seed, random, dtype=torch.float32):
        super().__init__()
        weight = torch.randn(outputs, inputs, generator=random) / math.sqrt(inputs)
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.seed = nn.Parameter(torch.tensor([seed]), requires_grad=False)
        coefficients = torch.randn(num_basis, generator=random)
        self.coefficients = nn.Parameter(coefficients.to(dtype))

    def basis(self):
        shape = (self.coefficients.numel(), *self.weight.shape)
        with seeded(self.seed):
            return torch.zeros(shape, dtype=self.coefficients.dtype).uniform_(-1.0, 1.0)

    @torch.no_grad()
    def matrix(self):
        normed = self.basis() * (1.0 / math.sqrt(self.coefficients.numel()))
        return torch.einsum("b,boi->oi", self.coefficients, normed) + self.weight

    def forward(self, x):
        return x @ self.matrix().t()


class SeededPair(nn.Module):
    """What is added to a layer: the scaled product of two such matrices."""

    def __init__(self, inputs, outputs, *, rank, alpha, num_basis, seeds, random, dtype=None):
        super().__init__()
        kind = dtype or torch.float32
        self.lora_A = SeededLinear(inputs, rank, num_basis, seeds[0], random, kind)
        self.lora_B = SeededLinear(rank, outputs, num_basis, seeds[1], random, kind)
        self.scale = alpha / rank

    def delta(self):
        return self.scale * (self.lora_B.matrix().double() @ self.lora_A.matrix().double())

    def forward(self, x):
        return self.lora_B(self.lora_A(x)) * self.scale


class Added(nn.Module):
    """A layer with its addition; for GPT-2's fused projection with one for each third."""

    def __init__(self, layer, *additions):
        super().__init__()
        self.layer = layer
        self.additions = additions

    def forward(self, x):
        out = self.layer(x)
        parts = [
            torch.zeros_like(out[..., : out.shape[-1] // len(self.additions)])
            if addition is None
            else addition(x)
            for addition in self.additions
        ]
        return out + torch.cat(parts, dim=-1)


class FixedBasisLayer(nn.Module):
    """An addition of the vision transformer code: a basis of seed 0, drawn when it is made."""

    def __init__(self, inputs, outputs, *, rank, counts, random):
        super().__init__()
        self.A = torch.zeros(counts[0], inputs, rank)
        self.B = torch.zeros(counts[1], rank, outputs)
        with seeded(0):
            for basis in (self.A, self.B):
                nn.init.kaiming_uniform_(basis, a=math.sqrt(5))
        self.alpha = torch.randn(counts[0], generator=random)
        self.beta = torch.randn(counts[1], generator=random)
        self.scale = 1.0 / rank

    def matrices(self):
        return (
            torch.einsum("b,bdr->dr", self.alpha, self.A),
            torch.einsum("b,bdr->dr", self.beta, self.B),
        )

    def delta(self):
        a, b = (matrix.double() for matrix in self.matrices())
        return self.scale * (a @ b).t()

    def forward(self, x):
        a, b = self.matrices()
        return self.scale * ((x @ a) @ b)


class Vision(nn.Module):
    """Blocks with an MLP and a head, with timm's names."""

    def __init__(self, width, hidden, classes, count):
        super().__init__()
        blocks = []
        for _ in range(count):
            block = nn.Module()
            block.mlp = nn.Module()
            block.mlp.fc1 = nn.Linear(width, hidden)
            block.mlp.fc2 = nn.Linear(hidden, width)
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for block in self.blocks:
            x = x + block.mlp.fc2(torch.relu(block.mlp.fc1(x)))
        return self.head(x)


def pair_tensors(name, pair):
    """Name the tensors of a pair as a state dict does."""
    return {f"{name}.{key}": value.detach() for key, value in pair.state_dict().items()}


def vision_tensors(layers, head):
    """Name what the vision transformer code saves of [(fc1, fc2), …] and its head."""
    tensors = {f"fc_{head.shape[1]}in_{head.shape[0]}out": head.detach().clone()}
    for number, (fc1, fc2) in enumerate(layers):
        tensors[f"fc1_A_{number:03d}"] = fc1.A[0, :10, 0].contiguous()
        for name, layer in (("fc1", fc1), ("fc2", fc2)):
            tensors[f"{name}_alpha_{number:03d}"] = layer.alpha
            tensors[f"{name}_beta_{number:03d}"] = layer.beta
    return tensors


def write_peft_folder(folder, pairs, container="safetensors", **config):
    """Save a folder as the LLaMA code does, which has no container but torch's own."""
    folder.mkdir()
    tensors = {}
    for name, pair in pairs.items():
        tensors.update(pair_tensors(f"base_model.model.{name}", pair))
    if container == "torch":
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    a = next(iter(pairs.values())).lora_A
    written = {
        "peft_type": "LORA", "use_nola": True, "nola_num_basis": a.coefficients.numel(),
        "r": a.weight.shape[0], "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True,
        "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": None, "revision": None, "modules_to_save": None,
        "layers_to_transform": None, "layers_pattern": None, "auto_mapping": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**written, **config}))


def do_as_the_refusal_says(path):
    """Run the first command that the refusal of a torch file prints; return what to convert."""
    path = Path(os.path.relpath(path))  # as people write it, and short
    with pytest.raises(FormatError) as refused:
        convert_checkpoint(path, path.parent / "never")
    said = re.search(r" run: (.+); then: give (.+)$", str(refused.value))
    subprocess.run(
        said[1],
        shell=True,
        check=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    return Path(*shlex.split(said[2]))
