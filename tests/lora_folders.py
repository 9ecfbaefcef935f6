"""LoRA folders as PEFT saves them, made without it."""

from __future__ import annotations

import json
import math

import numpy as np

from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.dtypes import numpy_dtype
from tests.conftest import MODULES, load_all, write_safetensors

F = np.float32


def lora_config(**fields):
    """Return what PEFT 0.21 writes, with some fields changed; `...` takes one out."""
    config = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "some/model",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q", "v"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **fields,
    }
    return {name: value for name, value in config.items() if value is not ...}


def factors(modules=MODULES, ranks=None, seed=0, dtype="F32", embeddings=()):
    """Return the tensors of a LoRA: module -> (out, in), ranks by module or 4."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, into) in modules.items():
        r = (ranks or {}).get(module, 4)
        a, b = (
            (rng.standard_normal(shape) * 0.3).astype(numpy_dtype(dtype))
            for shape in ((r, into), (out, r))
        )
        names = ("lora_embedding_A", "lora_embedding_B")
        if module not in embeddings:
            names = ("lora_A.weight", "lora_B.weight")
        tensors[f"{PREFIX}{module}.{names[0]}"] = a
        tensors[f"{PREFIX}{module}.{names[1]}"] = b
    return tensors


def write_lora(folder, tensors=None, /, **fields):
    """Write a folder, and return it."""
    folder.mkdir()
    write_safetensors(folder / WEIGHTS_NAME, factors() if tensors is None else tensors)
    (folder / CONFIG_NAME).write_text(json.dumps(lora_config(**fields)))
    return folder


def read_factors(folder, module):
    """Return A and B in float32."""
    tensors = load_all(folder / WEIGHTS_NAME)
    names = [f"{PREFIX}{module}.lora_{x}.weight" for x in "AB"]
    if names[0] not in tensors:
        names = [f"{PREFIX}{module}.lora_embedding_{x}" for x in "AB"]
    return [tensors[name].astype(F) for name in names]


def with_magnitudes(tensors, seed=9):
    """Add DoRA's norm for every output."""
    rng = np.random.default_rng(seed)
    found = dict(tensors)
    for name, values in tensors.items():
        stem, _, ending = name.rpartition(".lora_")
        if ending in ("B.weight", "embedding_B"):
            norms = rng.uniform(0.5, 2, len(values)).astype(F)
            found[f"{stem}.lora_magnitude_vector"] = norms
    return found


def scaling(alpha, r, rslora=False):
    """Return s as PEFT computes it."""
    return alpha / (math.sqrt(r) if rslora else r)
