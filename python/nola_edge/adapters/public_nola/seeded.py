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
from typing import TYPE_CHECKING

from nola_edge.adapters.peft_fields import is_alpha
from nola_edge.adapters.public_nola.contents import Factor
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile

_PARTS = ("weight", "seed", "coefficients")
_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?"
    r"\.(?P<part>weight|seed|coefficients)"
)
#: Module -> "A" or "B" -> part -> tensor name.
Names = dict[str, dict[str, dict[str, str]]]


def sort_names(file: CheckpointFile) -> tuple[Names, list[str]]:
    """Sort tensors' names into modules; also return those that are not part of a pair.

    Raises
    ------
    AdapterError
        If a part is there twice, or missing.
    """
    modules: Names = {}
    others = []
    for name in file.tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        factor = modules.setdefault(match["module"], {}).setdefault(match["factor"], {})
        if match["part"] in factor:
            raise file.refusal(
                name,
                f"is present besides {factor[match['part']]}: the file holds more than one adapter",
            )
        factor[match["part"]] = name
    for module, factors in modules.items():
        for label in ("A", "B"):
            missing = [part for part in _PARTS if part not in factors.get(label, {})]
            if missing:
                raise file.refusal(
                    module,
                    f"has no lora_{label} {missing[0]}, so it is not a NOLA layer of the public "
                    "code",
                )
    return modules, others


def read_pair(
    file: CheckpointFile, names: Mapping[str, Mapping[str, str]]
) -> tuple[Factor, Factor]:
    """Read the two factors of a module; their frozen weights stay in the file.

    Raises
    ------
    NolaEdgeError
        If a shape, dtype or value is not what the public code saves.
    """
    a, b = (_read_factor(file, names[label]) for label in ("A", "B"))
    if a.shape[0] != b.shape[1]:
        raise file.refusal(
            names["B"]["weight"],
            f"has shape {list(b.shape)}, but rank {a.shape[0]} by its lora_A",
        )
    return a, b


def _read_factor(file: CheckpointFile, names: Mapping[str, str]) -> Factor:
    seed = file.integer(names["seed"])
    if seed < 0:
        raise file.refusal(names["seed"], f"is {seed}; the public code's are not negative")
    weight, coefficients = file.matrix(names["weight"]), file.numbers(names["coefficients"])
    if weight.dtype != coefficients.dtype:
        kinds = [safetensors_dtype(values.dtype) for values in (coefficients, weight)]
        raise file.refusal(
            names["coefficients"], f"has dtype {kinds[0]}, but its weight has {kinds[1]}"
        )
    return Factor(
        name=names["coefficients"].rpartition(".")[0],
        seed=seed,
        shape=(weight.shape[0], weight.shape[1]),
        bound=1.0,
        coefficients=coefficients,
        gain=1.0 / math.sqrt(coefficients.size),
        weight=weight,
    )


def check_counts(file: CheckpointFile, factors: Iterable[Factor], announced: object = None) -> None:
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
            raise file.refusal(
                factor.name + ".coefficients",
                f"has {factor.num_basis} coefficients, {reason} {expected}",
            )


def given_alpha(file: CheckpointFile, given: float | None) -> float:
    """Return the ``lora_alpha`` that no file says, or refuse.

    Raises
    ------
    ArgumentError
    """
    if given is None:
        raise ArgumentError(
            "is needed, because no file records it; give the value that training was given as "
            "--lora_alpha (here --lora-alpha), or the PEFT folder, whose configuration has it",
            file=file.path,
            field="lora_alpha",
        )
    if not is_alpha(given) or given <= 0:
        raise ArgumentError(
            f"is {printable(given)}, must be positive, and at most 1e30", field="lora_alpha"
        )
    return float(given)
