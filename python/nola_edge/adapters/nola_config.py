"""``adapter_config.json``: which adapter the coefficients belong to (docs/adapter-format.md).

A field that changes the weights and is not understood is an error. A field that is not known at
all is passed over only when its value means "off".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nola_edge.adapters.quantize import BITS
from nola_edge.adapters.tensor_parts import TensorPart, parse_parts, tensors_field
from nola_edge.errors import AdapterError, printable

PEFT_TYPE = "NOLA"
NOLA_VERSION = 1
BASES = ("rademacher", "uniform")

MAX_RANK = 1 << 16
#: Expanding one element takes a pass over all coefficients: more would make a factor of any layer a
#: matter of hours, and its coefficients larger than the layer.
MAX_NUM_BASIS = 1 << 20
MAX_SEED = (1 << 63) - 1

_FINGERPRINTS = (
    "basis_fingerprint",
    "base_fingerprint",
    "modules_fingerprint",
    "shapes_fingerprint",
)

#: Fields of every method that say how an adapter was trained or found; they never change merged
#: weights.
OF_EVERY_METHOD = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "peft_version",
        "revision",
        "target_modules",
        "task_type",
    }
)
#: Those of NOLA.
BOOKKEEPING = OF_EVERY_METHOD | {"init_weights", "module_aliases", "nola_dropout", "start"}


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
        Rank, 1 .. 65536.
    num_basis_a, num_basis_b : int
        Coefficients per factor (k and l), 1 .. 2**20.
    seed : int
        0 .. 2**63 - 1.
    lora_alpha : float
        Positive and finite.
    basis : str
        ``"rademacher"`` or ``"uniform"``.
    use_rslora : bool
        Scaling by sqrt(r) instead of r.
    beta_unit : float
        What beta is counted in: a factor of the scaling. Positive and finite.
    fan_in_fan_out : bool
        Whether target weights are stored as (in, out), as GPT-2's Conv1D does.
    bias : str
        ``"none"``, ``"all"`` or ``"nola_only"``: whether bias tensors are in the file.
    modules_to_save : tuple of str
        Modules whose tensors are in the file whole.
    coefficient_bits : int or None
        3, 4 or 8: coefficients are stored quantised (:mod:`nola_edge.adapters.quantize`).
    exact_first_alpha : bool
        The first coefficient of A is not: it is stored exactly.
    basis_fingerprint, base_fingerprint, modules_fingerprint, shapes_fingerprint : str or None
        See :mod:`nola_edge.adapters.fingerprints`.
    tensors : dict
        Module, or name of a whole tensor -> :class:`TensorPart`: which stored tensor it is, where
        that is not the module's name with ``.weight``.
    bookkeeping : dict
        Known fields without influence on the weights, kept as they are.
    """

    r: int
    num_basis_a: int
    num_basis_b: int
    seed: int
    lora_alpha: float
    basis: str = "rademacher"
    use_rslora: bool = False
    beta_unit: float = 1.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    coefficient_bits: int | None = None
    exact_first_alpha: bool = False
    basis_fingerprint: str | None = None
    base_fingerprint: str | None = None
    modules_fingerprint: str | None = None
    shapes_fingerprint: str | None = None
    tensors: dict[str, TensorPart] = field(default_factory=dict)
    bookkeeping: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field, whether it came from a file or a caller."""
        _check(self, None)

    @property
    def scaling(self) -> float:
        """Return s = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA, times beta's unit.

        In double, in this order.
        """
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r) * self.beta_unit

    @staticmethod
    def from_json(data: dict[str, Any], *, file: object) -> AdapterConfig:
        """Check a parsed ``adapter_config.json``.

        Raises
        ------
        AdapterError
            Naming the file, the field and its value.
        """
        rest = dict(data)
        _expect(rest.pop("peft_type", None), PEFT_TYPE, "peft_type", file)
        version = rest.pop("nola_version", None)
        if isinstance(version, int) and not isinstance(version, bool) and version > NOLA_VERSION:
            raise AdapterError(
                f"is {version}, this program reads {NOLA_VERSION}; upgrade nola-edge",
                file=file,
                field="nola_version",
                value=version,
            )
        _expect(version, NOLA_VERSION, "nola_version", file)
        known: dict[str, Any] = {}
        for name in ("r", "num_basis_a", "num_basis_b", "seed", "lora_alpha"):
            if name not in rest:
                raise AdapterError("is missing", file=file, field=name)
            known[name] = rest.pop(name)
        for name in (
            "basis",
            "use_rslora",
            "beta_unit",
            "fan_in_fan_out",
            "bias",
            "coefficient_bits",
            "exact_first_alpha",
            *_FINGERPRINTS,
        ):
            if rest.get(name) is not None:
                known[name] = rest[name]
            rest.pop(name, None)
        known["tensors"] = parse_parts(rest.pop("tensors", None) or {}, file)
        saved = rest.pop("modules_to_save", None)
        if saved is not None:
            known["modules_to_save"] = tuple(saved) if isinstance(saved, list) else saved
        known["bookkeeping"] = {name: rest.pop(name) for name in sorted(BOOKKEEPING & set(rest))}
        _refuse_unknown(rest, file)
        try:
            return AdapterConfig(**known)
        except AdapterError as error:
            error.file = file
            raise

    def to_json(self) -> dict[str, Any]:
        """Return the fields as PEFT stores them."""
        data: dict[str, Any] = dict(self.bookkeeping)
        data.update(
            peft_type=PEFT_TYPE,
            nola_version=NOLA_VERSION,
            r=self.r,
            num_basis_a=self.num_basis_a,
            num_basis_b=self.num_basis_b,
            basis=self.basis,
            seed=self.seed,
            lora_alpha=self.lora_alpha,
            use_rslora=self.use_rslora,
            fan_in_fan_out=self.fan_in_fan_out,
            bias=self.bias,
            modules_to_save=list(self.modules_to_save) or None,
        )
        if self.beta_unit != 1:
            data["beta_unit"] = self.beta_unit
        for name in ("coefficient_bits", *_FINGERPRINTS):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.exact_first_alpha:
            data["exact_first_alpha"] = True
        data.update(tensors_field(self.tensors))
        return data


_Rule = tuple[Callable[[Any], bool], str]


def _integer(low: int, high: int) -> _Rule:
    return lambda v: type(v) is int and low <= v <= high, f"an integer in {low}..{high}"


def _positive(most: str) -> _Rule:
    return (
        lambda v: type(v) in (int, float) and 0 < v <= float(most),
        f"a positive number up to {most}",
    )


def _one_of(*choices: object) -> _Rule:
    text = ", ".join(str(choice) for choice in choices if choice is not None)
    return lambda v: any(type(v) is type(c) and v == c for c in choices), f"one of {text}"


#: Field -> whether a value is possible, and what it must be.
_RULES: dict[str, _Rule] = {
    "r": _integer(1, MAX_RANK),
    "num_basis_a": _integer(1, MAX_NUM_BASIS),
    "num_basis_b": _integer(1, MAX_NUM_BASIS),
    "seed": _integer(0, MAX_SEED),
    "lora_alpha": _positive("1e30"),
    "beta_unit": _positive("1e6"),
    "basis": _one_of(*BASES),
    "use_rslora": (lambda v: isinstance(v, bool), "true or false"),
    "fan_in_fan_out": (lambda v: isinstance(v, bool), "true or false"),
    "exact_first_alpha": (lambda v: isinstance(v, bool), "true or false"),
    "bias": _one_of("none", "all", "nola_only"),
    "coefficient_bits": _one_of(None, *BITS),
    **dict.fromkeys(_FINGERPRINTS, (lambda v: isinstance(v, str | None), "a string")),
    "tensors": (
        lambda v: all(isinstance(part, TensorPart) for part in v.values()),
        "TensorPart by module",
    ),
    "modules_to_save": (
        lambda v: isinstance(v, tuple) and all(isinstance(module, str) for module in v),
        "a list of module names",
    ),
}


def _expect(value: object, wanted: object, name: str, file: object) -> None:
    if type(value) is not type(wanted) or value != wanted:
        found = "is missing" if value is None else f"is {printable(value)!r}"
        raise AdapterError(
            f"{found}, must be {wanted!r}; this is not a NOLA adapter that nola-edge can read",
            file=file,
            field=name,
            value=value,
        )


def _refuse_unknown(rest: dict[str, Any], file: object) -> None:
    for name, value in rest.items():
        if value is None or value is False or value in ("", [], {}):
            continue
        raise AdapterError(
            f"is {printable(value)}: not understood here, and it may change the weights; "
            "upgrade nola-edge, or remove the field if you know that it does not matter",
            file=file,
            field=name,
            value=value,
        )


def _refusal(config: AdapterConfig, name: str, requirement: str, file: object) -> AdapterError:
    value = getattr(config, name)
    return AdapterError(
        f"is {printable(value)!r}, must be {requirement}", file=file, field=name, value=value
    )


def _check(config: AdapterConfig, file: object) -> None:
    for name, (is_possible, requirement) in _RULES.items():
        if not is_possible(getattr(config, name)):
            raise _refusal(config, name, requirement, file)
    if config.exact_first_alpha and config.coefficient_bits is None:
        raise _refusal(config, "exact_first_alpha", "false without coefficient_bits", file)
    _refuse_unknown({k: v for k, v in config.bookkeeping.items() if k not in BOOKKEEPING}, file)
