"""Pairs of ``NOLALinear``, the layer that the GPT-2 and the LLaMA code share.

Each of ``lora_A`` and ``lora_B`` is saved as ``seed`` (I64 [1]), ``coefficients`` [k] and a frozen
random ``weight`` (r × in, or out × r), which is part of the matrix. Its forward computes

    matrix = sum_i coefficients[i] * (basis[i] * (1 / sqrt(k))) + weight

where the basis (k, rows, columns) is one ``uniform_(-1, 1)`` after ``torch.manual_seed(seed)``, on
the device and in the dtype of the coefficients (``gpt/src/model_nola.py`` and
``llama/peft/tuners/lora.py``: ``GenerateParams.forward``, ``NOLALinear.forward``). A and B have
seeds of their own, so neither depends on the other's draw. The layer adds
``lora_alpha / r * lora_B(lora_A(x))``. Nothing that is saved tells the device.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.public_nola.contents import Factor
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nola_edge.adapters.public_nola.checkpoint_file import Source

_PARTS = ("weight", "seed", "coefficients")
_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?"
    r"\.(?P<part>weight|seed|coefficients)"
)
_MAX_SEED = (1 << 63) - 1
#: Module -> "A" or "B" -> part -> tensor name.
Names = dict[str, dict[str, dict[str, str]]]


def sort_names(names: Iterable[str], source: Source) -> tuple[Names, list[str]]:
    """Sort tensors' names into modules; return also those that are no part of a pair.

    Raises
    ------
    AdapterError
        If a part is there twice, or missing.
    """
    modules: Names = {}
    others = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        factor = modules.setdefault(match["module"], {}).setdefault(match["factor"], {})
        if match["part"] in factor:
            raise AdapterError(
                f"is there beside {factor[match['part']]}: the file holds more than one adapter",
                file=source.path,
                field=name,
            )
        factor[match["part"]] = name
    for module, factors in modules.items():
        for factor_name in ("A", "B"):
            missing = [p for p in _PARTS if p not in factors.get(factor_name, {})]
            if missing:
                raise AdapterError(
                    f"has no lora_{factor_name} {missing[0]}, so it is no NOLA layer of the "
                    "public code",
                    file=source.path,
                    field=module,
                )
    return modules, others


def read_pair(source: Source, names: Mapping[str, Mapping[str, str]]) -> tuple[Factor, Factor]:
    """Read the two factors of a module.

    Raises
    ------
    NolaEdgeError
        If a shape, dtype or value is not what the public code saves.
    """
    a, b = (_read_factor(source, names[factor]) for factor in ("A", "B"))
    if a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"has shape {list(b.shape)}, but rank {a.shape[0]} by its lora_A",
            file=source.path,
            field=names["B"]["weight"],
        )
    return a, b


def _read_factor(source: Source, names: Mapping[str, str]) -> Factor:
    weight_name, name = names["weight"], names["coefficients"]
    shape = source.tensors[weight_name].shape
    if len(shape) != 2 or 0 in shape:
        raise _wrong(source, weight_name, f"has shape {list(shape)}, must be a matrix")
    count = source.tensors[name].shape
    if len(count) != 1 or count[0] < 1:
        raise _wrong(source, name, f"has shape {list(count)}, must be a row of coefficients")
    seed = source.integer(names["seed"])
    if not 0 <= seed <= _MAX_SEED:
        raise _wrong(source, names["seed"], f"is {seed}; the public code's are not negative")
    weight, coefficients = source.floats(weight_name), source.floats(name)
    if weight.dtype != coefficients.dtype:
        kinds = [safetensors_dtype(v.dtype) for v in (coefficients, weight)]
        raise _wrong(source, name, f"has dtype {kinds[0]}, but its weight has {kinds[1]}")
    return Factor(
        name=name.rpartition(".")[0],
        seed=seed,
        shape=(shape[0], shape[1]),
        bound=1.0,
        coefficients=coefficients,
        gain=1.0 / math.sqrt(count[0]),
        weight=weight,
    )


def check_counts(source: Source, factors: Iterable[Factor], announced: Any = None) -> None:
    """Refuse coefficients of different counts: the public code has one for all layers.

    Raises
    ------
    AdapterError
    """
    factors = list(factors)
    expected = factors[0].num_basis if announced is None else announced
    reason = "the configuration says" if announced is not None else f"{factors[0].name} has"
    for factor in factors:
        if factor.num_basis != expected:
            raise _wrong(
                source,
                factor.name + ".coefficients",
                f"has {factor.num_basis} coefficients, {reason} {expected}",
            )


def _wrong(source: Source, name: str, message: str) -> AdapterError:
    return AdapterError(message, file=source.path, field=name)
