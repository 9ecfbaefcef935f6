"""``NolaConfig``: what a PEFT user sets, and what ``adapter_config.json`` holds."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from peft.config import PeftConfig

from nola_edge.adapters.fingerprints import (
    basis_fingerprint,
    modules_fingerprint,
    shapes_fingerprint,
)
from nola_edge.adapters.nola_config import NOLA_VERSION, PEFT_TYPE, AdapterConfig
from nola_edge.adapters.start import unit_of_beta
from nola_edge.adapters.tensor_parts import TensorPart, tensors_field
from nola_edge.errors import NolaEdgeError
from nola_edge.files.strict_json import MAX_CONFIG_BYTES, dumps, encode
from nola_edge.peft.base import fingerprint_of_folder
from nola_edge.peft.method import peft_type
from nola_edge.peft.spellings import is_off, take_over
from nola_edge.torch.factors import STARTS

_MAX_RECORD = MAX_CONFIG_BYTES // 2
#: Fields that change merged weights; ``modules_to_save`` may be any sequence here.
_CHECKED_WITH_OTHER_READERS = (
    "nola_version",
    "r",
    "num_basis_a",
    "num_basis_b",
    "basis",
    "seed",
    "lora_alpha",
    "use_rslora",
    "beta_unit",
    "fan_in_fan_out",
    "bias",
    "coefficient_bits",
    "exact_first_alpha",
    "tensors",
)
#: … on which the meaning of coefficients does not depend.
_OTHERWISE_ALIKE = ("bias", "tensors")


@dataclass
class NolaConfig(PeftConfig):
    """Configuration of a NOLA adapter (ICLR 2024, arXiv 2310.02556).

    ``W' = W + s B A`` with A and B linear combinations of random matrices that the seed
    regenerates; only the coefficients are trained and saved. The learning rate that suits LoRA
    with the same `r` and `lora_alpha` suits them.

    LoRA's spellings are accepted: ``lora_dropout``, ``init_lora_weights=True`` (or False) and
    ``bias="lora_only"`` set `nola_dropout`, `init_weights` and ``bias="nola_only"``, and are saved
    under these names. An option that NOLA lacks is refused unless it is off.

    Parameters
    ----------
    r : int
        Rank. It costs time, not trainable parameters.
    num_basis_a, num_basis_b : int
        Trainable coefficients per layer: of A (k) and of B (l).
    basis : {"rademacher", "uniform"}
        Distribution of the random matrices; rademacher is the faster one.
    seed : int
        0 .. 2**63 - 1. Adapters with different seeds have unrelated bases.
    lora_alpha : float
        s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`, times `beta_unit`.
    use_rslora : bool
    beta_unit : float, optional
        What beta is counted in. Default: what lets beta take the learning rates of LoRA's
        matrices, chosen when the adapter is put on a model (:func:`unit_of_beta`) and saved with
        it; 1 in a file that does not say.
    nola_dropout : float
        On the adapter's input.
    target_modules, exclude_modules, modules_to_save, layers_to_transform, layers_pattern
        As for ``LoraConfig``: names, a regular expression, "all-linear", or None for the usual
        layers of a known architecture.
    bias : {"none", "all", "nola_only"}
        Which biases are trained too.
    fan_in_fan_out : bool
        Weights are stored as (in, out). Detected automatically.
    init_weights : bool
        False: random coefficients, so that the fresh adapter is not the identity (for tests).
    start : {"unit", "unit-frozen", "random", "aligned"}
        How alpha begins; see :func:`nola_edge.torch.fresh_coefficients`.
    coefficient_bits : {3, 4, 8}, optional
        Train with, and save, coefficients of this many bits.
    exact_first_alpha : bool, optional
        … all but the first of every alpha, which stays exact. Default: with `coefficient_bits`.
    module_aliases : dict, optional
        New prefix -> the prefix that the streams were made with, for a model whose modules have
        since been renamed (``{"model.language_model.": "model."}``).
    tensors : dict, optional
        Written by the program: module -> stored tensor, if its name does not say so.
    nola_version, basis_fingerprint, base_fingerprint, modules_fingerprint, shapes_fingerprint
        Written by the program; see ``docs/adapter-format.md``.

    Raises
    ------
    ValueError
        If a value is out of range, or an option is one that NOLA lacks; the message names the
        field.
    """

    r: int = field(default=16, metadata={"help": "Rank of A and B."})
    num_basis_a: int = field(default=128, metadata={"help": "Trainable coefficients of A (k)."})
    num_basis_b: int = field(default=128, metadata={"help": "Trainable coefficients of B (l)."})
    basis: str = field(
        default="rademacher", metadata={"help": "Random matrices: 'rademacher' or 'uniform'."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the random matrices."})
    lora_alpha: float = field(default=16, metadata={"help": "s = lora_alpha / r."})
    use_rslora: bool = field(default=False, metadata={"help": "s = lora_alpha / sqrt(r)."})
    beta_unit: float | None = field(
        default=None, metadata={"help": "Of beta, times s; by default it suits LoRA's rates."}
    )
    nola_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter's input."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or a regular expression of modules to pass over."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved whole."}
    )
    bias: str = field(default="none", metadata={"help": "'none', 'all' or 'nola_only'."})
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Weights are stored as (in, out); detected automatically."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the identity; False is for tests."}
    )
    start: str = field(default="unit", metadata={"help": f"Start of alpha: {', '.join(STARTS)}."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, with layers_to_transform."}
    )
    coefficient_bits: int | None = field(
        default=None, metadata={"help": "Train with coefficients of 3, 4 or 8 bits."}
    )
    exact_first_alpha: bool | None = field(
        default=None, metadata={"help": "Not the first of alpha; as a rule with coefficient_bits."}
    )
    module_aliases: dict[str, str] | None = field(
        default=None, metadata={"help": "New prefix -> prefix that the streams were made with."}
    )
    nola_version: int = field(default=NOLA_VERSION, metadata={"help": "Version of the format."})
    basis_fingerprint: str | None = field(default=None, metadata={"help": "Written on saving."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Of a local base, on saving."}
    )
    modules_fingerprint: str | None = field(default=None, metadata={"help": "Written on saving."})
    shapes_fingerprint: str | None = field(default=None, metadata={"help": "Written on saving."})
    tensors: dict[str, str | None] | None = field(
        default=None, metadata={"help": "Module -> stored tensor, on saving."}
    )

    #: Adapters and weights that a combined adapter is the sum of; never saved.
    combination: ClassVar[tuple[tuple[str, float], ...]] = ()

    def __post_init__(self) -> None:
        """Check every field; the fields that change weights as every other reader does."""
        super().__post_init__()
        self.peft_type = peft_type()
        if self.exact_first_alpha is None:
            self.exact_first_alpha = self.coefficient_bits is not None
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform` to be set too.")
        if not isinstance(self.nola_dropout, Real) or not 0 <= self.nola_dropout < 1:
            raise ValueError(
                f"`nola_dropout` is {self.nola_dropout!r}, must be a number in [0, 1)."
            )
        if self.start not in STARTS:
            raise ValueError(f"`start` is {self.start!r}, must be one of {', '.join(STARTS)}.")
        _check_aliases(self.module_aliases)
        try:
            self.adapter_config()
            encode(self.to_dict())  # what PEFT will write
        except NolaEdgeError as error:
            raise ValueError(str(error)) from None
        if self.basis_fingerprint not in (None, basis_fingerprint(self.seed)):
            raise ValueError(
                f"`basis_fingerprint` is {self.basis_fingerprint}, but the seed gives "
                f"{basis_fingerprint(self.seed)}: the adapter was made with another generator."
            )

    def adapter_config(self) -> AdapterConfig:
        """Return the fields that determine merged weights, checked.

        Raises
        ------
        AdapterError
            If one is out of range.
        """
        data = {name: getattr(self, name) for name in _CHECKED_WITH_OTHER_READERS}
        return AdapterConfig.from_json({"peft_type": "NOLA", **data}, file="NolaConfig")

    @property
    def scaling(self) -> float:
        """Return s, in double; without a unit as long as none is chosen."""
        return self.adapter_config().scaling

    def check_same_basis(self, other: NolaConfig, adapter_name: str) -> None:
        """Refuse coefficients that were trained for other random matrices.

        Raises
        ------
        ValueError
            If a field on which the meaning of coefficients depends differs.
        """
        for name in (*_CHECKED_WITH_OTHER_READERS, "module_aliases"):
            mine, its = getattr(self, name) or None, getattr(other, name) or None
            if name not in _OTHERWISE_ALIKE and mine != its:
                raise ValueError(
                    f"The adapter {adapter_name!r} already exists with `{name}` {mine!r}, but the "
                    f"one to be loaded has {its!r}. Its coefficients would mean other matrices: "
                    "load it under another name, or call delete_adapter first."
                )

    def choose_unit(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Count beta in what suits the modules, (out_features, in_features), unless it is given."""
        if self.beta_unit is None:
            sizes = [out_features for out_features, _ in shapes.values()]
            self.beta_unit = unit_of_beta(sizes, self.num_basis_b)

    def stream_module(self, module: str) -> str:
        """Return the name that the streams of a module were made with."""
        return replace_prefix(module, self.module_aliases or {})

    def remember_modules(
        self,
        shapes: Mapping[str, tuple[int, int]],
        parts: Mapping[str, TensorPart] | None,
        live_base: str | None = None,
    ) -> None:
        """Take note of the modules that are about to be saved, for their fingerprints.

        Where the base is a local folder it gets a fingerprint too, so that a merge into another
        base, or a second one into the same, is refused.

        Parameters
        ----------
        shapes : mapping of module name to (out_features, in_features)
        parts : mapping, optional
            Module -> stored tensor, where its name does not say it; None: not known.
        live_base : str, optional
            What the model was loaded from, for an adapter that does not know yet: PEFT tells all
            but the first only after their tensors were selected.
        """
        self._modules_to_be_saved = dict(shapes)
        if parts is not None:
            record = tensors_field(parts)
            # With a larger one the configuration would be more than is read.
            self.tensors = record.get("tensors") if len(dumps(record)) <= _MAX_RECORD else None
        if self.base_fingerprint is None:
            base = self.base_model_name_or_path or live_base
            self.base_fingerprint = fingerprint_of_folder(
                base, shapes, self.adapter_config().tensors
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are saved, with fingerprints of generator and modules."""
        data = super().to_dict()
        data["basis_fingerprint"] = basis_fingerprint(self.seed)
        modules = getattr(self, "_modules_to_be_saved", None)
        if modules:
            data["modules_fingerprint"] = modules_fingerprint(modules)
            data["shapes_fingerprint"] = shapes_fingerprint(modules)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(data[name], set):
                data[name] = sorted(data[name])
        return data


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Replace the longest prefix that a name begins with; saving a mapping loses its order."""
    fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
    longest = max(fitting, key=len, default="")
    return prefixes.get(longest, "") + name.removeprefix(longest)


def _check_aliases(aliases: object) -> None:
    if aliases is None:
        return
    if not isinstance(aliases, dict) or not all(
        isinstance(text, str) for pair in aliases.items() for text in pair
    ):
        raise ValueError(
            "`module_aliases` must map a new prefix to the prefix that the streams were made with."
        )


def _check_names(config_cls: type[NolaConfig]) -> None:
    """Have the constructor take over LoRA's spellings, and refuse fields that it does not know.

    PEFT drops unknown fields of a file with a warning. They may change the weights.
    """
    generated = config_cls.__init__
    known = set(config_cls.__dataclass_fields__)

    @functools.wraps(generated)
    def checked(self: NolaConfig, *args: Any, **fields: Any) -> None:
        # PEFT hands over all fields of a file, this one too; a script has no reason to.
        is_file = fields.get("peft_type") == PEFT_TYPE
        given = _known_fields(fields, known) if is_file else take_over(fields, known)
        generated(self, *args, **given)

    config_cls.__init__ = checked  # type: ignore[method-assign]


def _known_fields(fields: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a file's fields, without unknown ones whose value means "off"."""
    for name, value in fields.items():
        if name not in known and not is_off(value):
            raise ValueError(
                f"`{name}` is {value!r}: not a field of NolaConfig that this version "
                "understands, and it may change the weights. Upgrade nola-edge, or remove "
                "the field if you know that it does not matter."
            )
    given = {name: value for name, value in fields.items() if name in known}
    # A file from before there were units; in one that leaves the choice open it is null.
    given.setdefault("beta_unit", 1.0)
    given["exact_first_alpha"] = given.get("exact_first_alpha") or False
    return given


_check_names(NolaConfig)
