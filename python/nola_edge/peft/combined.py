"""Several adapters as one: ``model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mixed")``.

A weighted sum of products B A is exactly the product of concatenated ranks, and nothing else is:
coefficients that go with different random matrices cannot be added. So a combined adapter keeps
the coefficients of its parts, and is for use in memory; it cannot be trained, nor saved as the
coefficients of one seed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import nn

from nola_edge.peft.config import NolaConfig
from nola_edge.peft.spellings import is_off
from nola_edge.torch.factors import Factors


@dataclass(frozen=True)
class Part:
    """One adapter's share in a combined one, on one layer.

    Attributes
    ----------
    factors : Factors
    num_basis_a, num_basis_b : int
        How many of the combined adapter's coefficients are its own.
    scaling : float
        Of the adapter, times its weight.
    """

    factors: Factors
    num_basis_a: int
    num_basis_b: int
    scaling: float


def check_combination_type(combination_type: str, options: Mapping[str, Any]) -> None:
    """Refuse the approximations of PEFT's LoRA, and the options that only they have.

    Raises
    ------
    ValueError
    """
    exact = "NOLA adapters are added exactly, by concatenating their ranks, which is 'cat'"
    if combination_type != "cat":
        raise ValueError(f"`combination_type` is {combination_type!r}: {exact}.")
    # Scripts that were written for LoRA may spell out what is off.
    for name, value in options.items():
        if not is_off(value):
            raise ValueError(f"`{name}` is {value!r}: {exact} and has no options.")


def check_combination(
    configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Refuse a combination of what cannot be added.

    Raises
    ------
    ValueError
    """
    if adapter_name in configs:
        raise ValueError(f"An adapter {adapter_name!r} already exists: call delete_adapter first.")
    # PyTorch keeps the coefficients in a dictionary of this kind.
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict, adapter_name):
        raise ValueError(
            f"{adapter_name!r} cannot be the name of an adapter: PyTorch allows neither a dot in "
            "it nor the name of a method. Choose another."
        )
    if isinstance(weights, Real):
        raise ValueError(f"`weights` is {weights!r}, must be a list with a number per adapter.")
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"{len(adapters)} adapters were given, but {len(weights)} weights.")
    for name, weight in zip(adapters, weights, strict=True):
        if name not in configs:
            raise ValueError(f"Adapter {name!r} does not exist; there are {', '.join(configs)}.")
        if not isinstance(weight, Real):
            raise ValueError(f"The weight of adapter {name!r} is {weight!r}, must be a number.")
        if not math.isfinite(weight):
            raise ValueError(f"The weight of adapter {name!r} is {weight}, must be finite.")
        if configs[name].modules_to_save or configs[name].bias != "none":
            raise ValueError(
                f"Adapter {name!r} trains whole modules or biases, which have no weighted sum: "
                "combine adapters without `modules_to_save` and `bias`."
            )


def combined_config(
    configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float]
) -> NolaConfig:
    """Return a configuration that says what PEFT asks of one, and of which adapters it is."""
    first = configs[adapters[0]]
    config = dataclasses.replace(
        first,
        r=sum(configs[name].r for name in adapters),
        inference_mode=True,
        coefficient_bits=None,
        exact_first_alpha=False,
        base_fingerprint=None,
        modules_fingerprint=None,
        shapes_fingerprint=None,
    )
    config.combination = _flattened(configs, adapters, weights)
    return config


def _flattened(
    configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    """Return the adapters that a sum, of which some may be sums, has in the end; each once."""
    total: dict[str, float] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, share in configs[adapter].combination or ((adapter, 1.0),):
            total[name] = total.get(name, 0.0) + float(weight) * share
    return tuple(total.items())


def without_combined(configs: Mapping[str, Any]) -> list[str]:
    """Return the adapters that can be saved, and warn of combined ones.

    Raises
    ------
    ValueError
        If there are none but combined ones.
    """
    combined = [name for name, config in configs.items() if getattr(config, "combination", None)]
    names = [name for name in configs if name not in combined]
    if combined and not names:
        refuse_saving(configs[combined[0]], combined[0])
    if combined:
        warnings.warn(
            f"Not saved: {', '.join(map(repr, combined))}. A weighted sum of adapters cannot be "
            "expressed by one seed and its coefficients; what it is made of can.",
            stacklevel=4,
        )
    return names


def refuse_saving(config: Any, adapter_name: str) -> None:
    """Refuse to save a combined adapter.

    Raises
    ------
    ValueError
        Saying what to do instead.
    """
    combination = getattr(config, "combination", None)
    if combination:
        terms = " ".join(f"{name}={weight:g}" for name, weight in combination)
        names = list(dict(combination))
        raise ValueError(
            f"The adapter {adapter_name!r} is a weighted sum, which one seed and its coefficients "
            f"cannot express. Save its parts (`selected_adapters={names}`) and combine their "
            f"folders: `nola-edge merge BASE {terms} -o merged`, or `nola-edge export gguf-lora`."
        )
