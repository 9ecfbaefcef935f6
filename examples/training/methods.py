"""The ways to fine-tune that the examples compare, and how each is put on a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import peft
from torch import nn

from nola_edge.peft import NolaConfig


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes
    ----------
    name : str
        For tables.
    kind : {"full", "lora", "nola"}
        Each task has a learning rate for each kind.
    options : dict
        For the PEFT configuration. For NOLA, ``fraction`` is the number of coefficients as a part
        of what LoRA with r = 1 trains on the same modules.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


def nola(name: str, fraction: float = 0.25, **options: Any) -> Method:
    """Return a NOLA method; r = 16 unless given."""
    return Method(name, "nola", {"fraction": fraction, "r": 16, **options})


MAIN = [
    Method("full fine-tuning", "full"),
    Method("LoRA r = 4", "lora", {"r": 4}),
    Method("LoRA r = 1", "lora", {"r": 1}),
    nola("NOLA 1/2", 0.5),
    nola("NOLA 1/4"),
    nola("NOLA 1/10", 0.1),
]
VARIANTS = [
    nola("NOLA 1/4, uniform basis", basis="uniform"),
    nola("NOLA 1/4, r = 4", r=4),
    nola("NOLA 1/4, r = 64", r=64),
    nola("NOLA 1/4, 8 bits", coefficient_bits=8),
    nola("NOLA 1/4, 4 bits", coefficient_bits=4),
    nola("NOLA 1/4, start unit, first frozen", start="unit-frozen"),
    nola("NOLA 1/4, start random", start="random"),
]
METHODS = {method.name: method for method in [*MAIN, *VARIANTS]}


def apply(
    method: Method, model: nn.Module, targets: str, seed: int, saved: list[str] | None = None
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

    Returns
    -------
    model : nn.Module
    parameters : int
        Trained numbers, heads apart.
    """
    if method.kind == "full":
        heads = [p for name in saved or () for p in model.get_submodule(name).parameters()]
        return model, sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in heads)
    options = dict(method.options)
    common: dict[str, Any] = {"target_modules": targets, "modules_to_save": saved}
    config: peft.PeftConfig
    if method.kind == "lora":
        config = peft.LoraConfig(lora_alpha=2 * options["r"], **options, **common)
    else:
        sizes = [
            m.in_features + m.out_features if isinstance(m, nn.Linear) else sum(m.weight.shape)
            for name, m in model.named_modules()
            if re.fullmatch(targets, name)
        ]
        count = max(1, round(options.pop("fraction") * sum(sizes) / (2 * len(sizes))))
        config = NolaConfig(
            num_basis_a=count,
            num_basis_b=count,
            lora_alpha=2 * options["r"],
            seed=seed,
            **options,
            **common,
        )
    adapted = peft.get_peft_model(model, config)
    mark = "lora_" if method.kind == "lora" else "nola_"
    trained = sum(p.numel() for n, p in adapted.named_parameters() if mark in n)
    return adapted, trained
