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
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.public_nola.contents import Factor
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile

    #: The factors A and B of a module.
    Pair = tuple[Factor, Factor]
    #: Module -> "A" or "B" -> part -> tensor name.
    Names = dict[str, dict[str, dict[str, str]]]

_PARTS = ("weight", "seed", "coefficients")
_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?"
    rf"\.(?P<part>{'|'.join(_PARTS)})"
)


def read_pairs(file: CheckpointFile, *, with_base: bool) -> tuple[dict[str, Pair], int]:
    """Read the factors of all modules; their frozen weights stay in the file.

    Parameters
    ----------
    file : CheckpointFile
    with_base : bool
        Whether it may hold the frozen base too.

    Returns
    -------
    dict
        Module, without prefixes -> (A, B).
    int
        How many tensors are the base's.

    Raises
    ------
    NolaEdgeError
        If a tensor is not what the public code saves, or what the configuration says.
    """
    modules, others = _sorted_names(file)
    for name in others:
        if not with_base or "lora_" in name or "nola" in name:
            raise file.refusal(name, "is not part of a NOLA layer, so its effect is unknown")
    pairs: dict[str, Pair] = {}
    for stored, names in modules.items():
        module = stored.removeprefix("module.").removeprefix(PREFIX)
        if not module.isprintable() or not module:
            raise file.refusal(module, "cannot be a module's name")
        if module in pairs:
            raise file.refusal(module, "occurs twice, with and without a prefix")
        pairs[module] = _read_pair(file, names)
    counts = {f"{f.name}.coefficients": f.num_basis for pair in pairs.values() for f in pair}
    file.check_counts(counts, file.fields.get("nola_num_basis"))
    return pairs, len(others)


def _sorted_names(file: CheckpointFile) -> tuple[Names, list[str]]:
    """Sort tensors' names into modules; also return those that are not part of a pair."""
    modules: Names = {}
    others = []
    for name in file.tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        factor = modules.setdefault(match["module"], {"A": {}, "B": {}})[match["factor"]]
        if match["part"] in factor:
            raise file.refusal(
                name,
                f"is present besides {factor[match['part']]}: the file holds more than one adapter",
            )
        factor[match["part"]] = name
    for module, factors in modules.items():
        for label, factor in factors.items():
            missing = [part for part in _PARTS if part not in factor]
            if missing:
                raise file.refusal(
                    module,
                    f"has no lora_{label} {missing[0]}, so it is not a NOLA layer of the public "
                    "code",
                )
    return modules, others


def _read_pair(file: CheckpointFile, names: Mapping[str, Mapping[str, str]]) -> Pair:
    a, b = (_read_factor(file, names[label]) for label in "AB")
    rank, announced = a.shape[0], file.fields.get("r")
    if rank != b.shape[1]:
        raise file.refusal(
            names["B"]["weight"], f"has shape {list(b.shape)}, but rank {rank} by its lora_A"
        )
    if announced not in (None, rank):
        raise file.refusal(
            names["A"]["weight"], f"has rank {rank}, the configuration says {printable(announced)}"
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


def alpha_of(file: CheckpointFile, given: float | None) -> float:
    """Return the ``lora_alpha`` of the configuration, or the one that is given where there is none.

    Raises
    ------
    ArgumentError
        If it is needed and not given, or is not what the configuration says.
    AdapterError
        If the configuration's is not a number.
    """
    stored = file.fields.get("lora_alpha")
    if stored is not None:
        if not is_alpha(stored):
            raise file.field_refusal("lora_alpha", f"is {printable(stored)}, must be a number")
        if given not in (None, stored):
            raise ArgumentError(f"is {given}, the configuration says {stored}", field="lora_alpha")
        return float(stored)
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
