"""Small checkpoints as the public code saves them, and bases for them, written without torch."""

import json

import numpy as np

from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.public_nola.cpu_generator import CpuGenerator
from nola_edge.adapters.public_nola.vision import kaiming_bound
from nola_edge.dtypes import numpy_dtype
from tests.conftest import MODULES, write_safetensors

F = np.float32
RNG = np.random.default_rng(4)
CONFIG = {
    "peft_type": "LORA", "use_nola": True, "nola_num_basis": 6, "r": 2, "lora_alpha": 4,
    "bias": "none", "fan_in_fan_out": False, "target_modules": ["q"], "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base", "lora_dropout": 0.05, "modules_to_save": None,
}  # fmt: skip


def pair(name, inputs=10, outputs=12, rank=2, num_basis=6, seeds=(1, 10**10 - 1), dtype=F):
    """Return the tensors of a layer of the LLaMA or the GPT-2 code."""
    tensors = {}
    shapes = {"A": (rank, inputs), "B": (outputs, rank)}
    for (label, shape), seed in zip(shapes.items(), seeds, strict=True):
        tensors |= {
            f"{name}.lora_{label}.weight": RNG.standard_normal(shape).astype(dtype),
            f"{name}.lora_{label}.seed": np.array([seed]),
            f"{name}.lora_{label}.coefficients": RNG.standard_normal(num_basis).astype(dtype),
        }
    return tensors


def peft_tensors(**options):
    return {
        **pair(PREFIX + "layers.0.q", **options),
        **pair(PREFIX + "layers.1.q", **options),
    }


def write_folder(folder, tensors=None, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    tensors = peft_tensors() if tensors is None else tensors
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def gpt2_tensors(width=8):
    tensors = {}
    for block in range(2):
        for number, layer in enumerate(("nola_query", "nola_value")):
            name = f"module.transformer.h.{block}.attn.{layer}"
            tensors |= pair(name, width, width, seeds=(number, number + 5))
    return tensors


def vit_tensors(width=12, rank=3, counts=(6, 5), blocks=2):
    """Return what is saved, with the values that a CPU gives first."""
    basis = CpuGenerator(0).uniform(10 * rank, kaiming_bound(width * rank))
    record = next(basis)[::rank][: min(10, width)]
    tensors = {f"fc_{width}in_4out": RNG.standard_normal((4, width)).astype(F)}
    for block in range(blocks):
        for layer in ("fc1", "fc2"):
            for label, count in zip(("alpha", "beta"), counts, strict=True):
                values = RNG.standard_normal(count).astype(F)
                tensors[f"{layer}_{label}_{block:03d}"] = values
        tensors[f"fc1_A_{block:03d}"] = record
    return tensors


def tiny_checkpoint(folder, dtype="F32", **options):
    """Write a checkpoint for the modules of the tiny base."""
    tensors = {}
    for number, (module, (outputs, inputs)) in enumerate(MODULES.items()):
        seeds = (number, number + 10)
        kind = numpy_dtype(dtype)
        tensors |= pair(PREFIX + module, inputs, outputs, seeds=seeds, dtype=kind, **options)
    return write_folder(folder, tensors)


def gpt2_mlp(width=8):
    tensors = {}
    for block in range(2):
        for name, inputs, outputs, seeds in (
            ("p1_nola", width, 4 * width, (3, 4)),
            ("p2_nola", 4 * width, width, (8, 9)),
        ):
            module = f"module.transformer.h.{block}.mlp.{name}"
            tensors |= pair(module, inputs, outputs, seeds=seeds)
    return tensors


def gpt2_base(path, width=8, blocks=2, dtype="F32"):
    rng = np.random.default_rng(5)
    tensors = {
        f"transformer.h.{block}.{name}.weight": rng.standard_normal(shape).astype(
            numpy_dtype(dtype)
        )
        for block in range(blocks)
        for name, shape in (
            ("attn.c_attn", (width, 3 * width)),
            ("mlp.c_fc", (width, 4 * width)),
            ("mlp.c_proj", (4 * width, width)),
        )
    }
    write_safetensors(path, tensors)
    return path


def vit_base(path, width=12, hidden=48, blocks=2):
    rng = np.random.default_rng(6)
    tensors = {"head.weight": rng.standard_normal((4, width)).astype(F)}
    for block in range(blocks):
        for name, shape in (("fc1", (hidden, width)), ("fc2", (width, hidden))):
            tensors[f"blocks.{block}.mlp.{name}.weight"] = rng.standard_normal(shape).astype(F)
    write_safetensors(path, tensors)
    return path
