"""The ways to fine-tune that the examples compare, and how each is put on a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import nn

from nola_edge.peft import NolaConfig
from nola_edge.torch import align_start
from nola_edge.torch.weight_gradients import mean_gradients


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes
    ----------
    name : str
        For tables.
    kind : {"full", "lora", "nola", "other"}
        Each task has a learning rate for each kind.
    options : dict
        For the PEFT configuration. For NOLA, ``fraction`` is the number of coefficients as a part
        of what LoRA with r = 1 trains on the same modules. For others, ``config`` is PEFT's class.
    is_aligned : bool
        Start along the first gradient, where a task gives batches for it.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    is_aligned: bool = False


def nola(name: str, fraction: float = 0.25, is_aligned: bool = False, **options: Any) -> Method:
    """Return a NOLA method; r = 16 unless given."""
    return Method(name, "nola", {"fraction": fraction, "r": 16, **options}, is_aligned)


def other(name: str, config: str, **options: Any) -> Method:
    """Return a method of PEFT's."""
    return Method(name, "other", {"config": config, **options})


#: The small tasks were measured with beta counted in ones, at rates of their own.
ONE = {"beta_unit": 1.0}
MAIN = [
    Method("full fine-tuning", "full"),
    Method("LoRA r = 4", "lora", {"r": 4}),
    Method("LoRA r = 1", "lora", {"r": 1}),
    nola("NOLA 1/2", 0.5, **ONE),
    nola("NOLA 1/4", **ONE),
    nola("NOLA 1/10", 0.1, **ONE),
]
VARIANTS = [
    nola("NOLA 1/4, uniform basis", basis="uniform", **ONE),
    nola("NOLA 1/4, r = 4", r=4, **ONE),
    nola("NOLA 1/4, r = 64", r=64, **ONE),
    nola("NOLA 1/4, 8 bits", coefficient_bits=8, **ONE),
    nola("NOLA 1/4, 4 bits", coefficient_bits=4, **ONE),
    nola("NOLA 1/4, start unit, first frozen", start="unit-frozen", **ONE),
    nola("NOLA 1/4, start random", start="random", **ONE),
]
#: For the real model, in the order of importance.
REAL = [
    Method("LoRA r = 1", "lora", {"r": 1}),
    nola("NOLA 1/4, aligned", 0.25, is_aligned=True),
    nola("NOLA 1/4"),
    nola("NOLA 1/8, aligned", 0.125, is_aligned=True),
    nola("NOLA 1/16, aligned", 0.0625, is_aligned=True),
    Method("LoRA r = 1, aligned", "lora", {"r": 1}, is_aligned=True),
    nola("NOLA 1/1, aligned", 1.0, is_aligned=True),
    nola("NOLA 1/2, aligned", 0.5, is_aligned=True),
    Method("LoRA r = 4", "lora", {"r": 4}),
    Method("LoRA r = 16", "lora", {"r": 16}),
    other("VeRA", "VeraConfig"),
    other("TinyLoRA", "TinyLoraConfig"),
    other("Uni-LoRA 1/4", "UniLoraConfig", r=4, theta_d_length=76_440),
    other("VB-LoRA", "VBLoRAConfig", vector_length=64, save_only_topk_weights=True),
]
#: Tried on the real model with as many parameters as NOLA 1/4, and with as few for LoRA.
VALUES, VALUES_OUT = r".*\.v_proj", r".*\.(v|o)_proj"
VALUES_OUT_DOWN = r".*\.(v|o|down)_proj"
TRIED = [
    nola("NOLA 1/4, r = 4, aligned", is_aligned=True, r=4),
    nola("NOLA 1/4, r = 1, aligned", is_aligned=True, r=1),
    nola("NOLA 1/4, r = 64, aligned", is_aligned=True, r=64),
    nola("NOLA 1/4, all in B", num_basis_a=1, num_basis_b=363),
    nola(
        "NOLA 1/4 on v, aligned", is_aligned=True, num_basis_a=1274, num_basis_b=1274,
        target_modules=VALUES,
    ),
    nola(
        "NOLA 1/4 on v o, aligned", is_aligned=True, num_basis_a=637, num_basis_b=637,
        target_modules=VALUES_OUT,
    ),
    nola(
        "NOLA 1/4 on v o down, aligned", is_aligned=True, num_basis_a=425, num_basis_b=424,
        target_modules=VALUES_OUT_DOWN,
    ),
    Method("LoRA r = 1 on v o", "lora", {"r": 1, "target_modules": VALUES_OUT}),
]  # fmt: skip
METHODS = {method.name: method for method in [*MAIN, *VARIANTS, *REAL, *TRIED]}


def apply(
    method: Method,
    model: nn.Module,
    targets: str,
    seed: int,
    saved: list[str] | None = None,
    batches: Sequence[Any] = (),
) -> tuple[nn.Module, int]:
    """Put a method on a model.

    Parameters
    ----------
    method : Method
    model : nn.Module
    targets : str
        Regular expression of the modules to adapt.
    seed : int
        Of the random matrices.
    saved : list of str, optional
        Modules that every method trains whole, such as a new head; they are not counted.
    batches : sequence
        For methods with an aligned start.

    Returns
    -------
    model : nn.Module
    parameters : int
        Trained numbers, heads apart.
    """
    if method.kind == "full":
        heads = [p for name in saved or () for p in model.get_submodule(name).parameters()]
        return model, sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in heads)
    config = configuration(method, model, targets, seed)
    config.modules_to_save = saved  # type: ignore[attr-defined]
    adapted = peft.get_peft_model(model, config)
    if method.is_aligned and method.kind == "nola":
        align_start(adapted, batches, progress=False)
    elif method.is_aligned:
        align_lora(adapted, batches)
    trained = sum(
        p.numel()
        for n, p in adapted.named_parameters()
        if p.requires_grad and "modules_to_save" not in n
    )
    return adapted, trained


def configuration(method: Method, model: nn.Module, targets: str, seed: int) -> peft.PeftConfig:
    """Return the PEFT configuration of a method for a model."""
    options = {"target_modules": targets, **method.options}
    if method.kind == "lora":
        return peft.LoraConfig(lora_alpha=2 * options["r"], **options)
    if method.kind == "other":
        config: peft.PeftConfig = getattr(peft, options.pop("config"))(**options)
        return config
    count = num_basis(model, targets, options.pop("fraction"))
    counts = {"num_basis_a": count, "num_basis_b": count}
    return NolaConfig(**{**counts, "lora_alpha": 2 * options["r"], "seed": seed, **options})


def num_basis(model: nn.Module, targets: str, fraction: float) -> int:
    """Return how many coefficients A and B each have where LoRA with r = 1 has rows and columns."""
    sizes = [
        m.in_features + m.out_features if isinstance(m, nn.Linear) else sum(m.weight.shape)
        for name, m in model.named_modules()
        if re.fullmatch(targets, name)
    ]
    return max(1, round(fraction * sum(sizes) / (2 * len(sizes))))


def align_lora(model: nn.Module, batches: Sequence[Any]) -> None:
    """Let LoRA's A begin with the right singular vectors of the first gradient, fair as it is."""
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    weights = [(layer, layer.out_features, layer.in_features) for layer in layers]
    for layer, gradient in zip(layers, mean_gradients(model, weights, batches), strict=True):
        a = layer.lora_A["default"].weight
        vectors = torch.svd_lowrank(gradient, q=len(a) + 8, niter=8)[2][:, : len(a)]
        with torch.no_grad():
            a.copy_(vectors.T / 3**0.5)  # the norm of its rows stays
