"""``adapter_config.json`` of a LoRA: the fields of PEFT's that matter to merged weights.

A field that may change the weights and is not understood must be off, or the adapter is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nola_edge.adapter.config import MAX_RANK
from nola_edge.adapter.patterns import why_unusable
from nola_edge.errors import AdapterError, printable

if TYPE_CHECKING:
    from pathlib import Path

#: Known fields that say how the adapter was trained or found; they never change merged weights.
BOOKKEEPING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_dtype",
        "lora_ga_config",
        "lorap_lr_ratio",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_WITH_PEFT = "merge it with PEFT (merge_and_unload, then save_pretrained)"
_DEPENDS = (
    "what it adds depends on the input, so that no weights are equal to it; serve it with PEFT"
)
#: Fields of which it is known what they do, and what to do about them.
_REFUSED = {
    "use_qalora": f"its A is grouped over inputs, which is not done here; {_WITH_PEFT}",
    "use_bdlora": f"its factors are block-diagonal, which is not done here; {_WITH_PEFT}",
    "kasa_config": f"it has a diagonal between B and A, and a changed base; {_WITH_PEFT}",
    "trainable_token_indices": f"rows of the embedding were trained by themselves; {_WITH_PEFT}",
    "target_parameters": (
        "programs lay out the factors of stacked experts in different ways, and the file does not "
        "say which; merge it with the program that trained it"
    ),
    "layer_replication": "it is for a base with repeated layers, which no file holds; use PEFT",
    "ensure_weight_tying": (
        "input and output share one adapter; train with ensure_weight_tying=False, or merge it "
        "with PEFT"
    ),
    "arrow_config": _DEPENDS,
    "alora_invocation_tokens": _DEPENDS,
    "monteclora_config": _DEPENDS,
}
#: Beginnings of init_lora_weights after which training goes on from the base as it was.
_KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")
_MAX_ALPHA = 1e30


@dataclass(frozen=True)
class LoraConfig:
    """The fields that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
        Rank of modules that `rank_pattern` does not match, 1 .. 65536.
    lora_alpha : float
        Of modules that `alpha_pattern` does not match.
    use_rslora : bool
        Scaling by sqrt(r) instead of r.
    rank_pattern, alpha_pattern : dict
        Regular expression, as PEFT matches it -> r or lora_alpha.
    fan_in_fan_out : bool
        Whether the weights of layers are stored as (in, out), as GPT-2's Conv1D does.
    bias : str
        ``"none"``, ``"all"`` or ``"lora_only"``: whether bias tensors are in the file.
    lora_bias : bool
        Whether B has a bias, which is added to the layer's.
    use_dora : bool
        Whether merged weights are scaled to norms that are in the file.
    modules_to_save : tuple of str
        Modules whose tensors are in the file whole.
    bookkeeping : dict
        Known fields without influence on the weights, kept as they are.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    bias: str = "none"
    lora_bias: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    bookkeeping: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(data: dict[str, Any], *, file: Path) -> LoraConfig:
        """Check a parsed ``adapter_config.json``.

        Raises
        ------
        AdapterError
            Naming the file, the field and its value.
        """
        rest = {name: value for name, value in data.items() if not _is_off(value)}
        fields = _Fields(rest, file)
        start = rest.pop("init_lora_weights", True)
        if not (isinstance(start, bool) or start in _KEEP_BASE):
            raise AdapterError(
                f"is {printable(repr(start))}: such a start changes the base, and the adapter "
                "belongs to the changed one; merge it with PEFT, or save it with "
                "save_pretrained(…, path_initial_model_for_weight_conversion=…), which makes a "
                "plain LoRA of it",
                file=file,
                field="init_lora_weights",
                value=start,
            )
        config = LoraConfig(
            r=fields.rank("r"),
            lora_alpha=fields.alpha("lora_alpha"),
            use_rslora=fields.flag("use_rslora"),
            rank_pattern=fields.pattern("rank_pattern", _is_rank, "a rank"),
            alpha_pattern=fields.pattern("alpha_pattern", _is_alpha, "a number"),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            bias=fields.choice("bias", ("none", "all", "lora_only")),
            lora_bias=fields.flag("lora_bias"),
            use_dora=fields.flag("use_dora"),
            modules_to_save=fields.names("modules_to_save"),
            bookkeeping={name: rest.pop(name) for name in sorted(BOOKKEEPING & set(rest))},
        )
        if config.lora_bias and config.bias != "none":
            raise AdapterError(
                f"is {config.bias!r} together with lora_bias, which is not done here; {_WITH_PEFT}",
                file=file,
                field="bias",
            )
        fields.refuse_rest()
        return config

    def scaling(self, rank: int, alpha: float) -> float:
        """Return s = alpha / r, or alpha / sqrt(r) with rsLoRA, in double."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_ALPHA  # type: ignore[arg-type]


class _Fields:
    """Takes fields out of a parsed configuration; those that are off are not in it."""

    def __init__(self, rest: dict[str, Any], file: Path) -> None:
        self._rest = rest
        self._file = file

    def _refusal(self, name: str, value: object, requirement: str) -> AdapterError:
        return AdapterError(
            f"is {printable(repr(value))}, must be {requirement}",
            file=self._file,
            field=name,
            value=value,
        )

    def _needed(self, name: str) -> Any:
        if name not in self._rest:
            raise AdapterError(
                "is missing, and nothing else says it; add the value that the adapter was trained "
                "with",
                file=self._file,
                field=name,
            )
        return self._rest.pop(name)

    def rank(self, name: str) -> int:
        value = self._needed(name)
        if not _is_rank(value):
            raise self._refusal(name, value, f"an integer in 1..{MAX_RANK}")
        return int(value)

    def alpha(self, name: str) -> float:
        value = self._needed(name)
        if not _is_alpha(value):
            raise self._refusal(name, value, "a number of at most 1e30")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._rest.pop(name, False)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._rest.pop(name, choices[0])
        if value not in choices:
            raise self._refusal(name, value, f"one of {', '.join(choices)}")
        return str(value)

    def names(self, name: str) -> tuple[str, ...]:
        value = self._rest.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._refusal(name, value, "a list of module names")
        return tuple(value)

    def pattern(self, name: str, is_value: Any, what: str) -> dict[str, Any]:
        value = self._rest.pop(name, {})
        if not isinstance(value, dict) or not all(map(is_value, value.values())):
            raise self._refusal(name, value, f"an object that gives each pattern {what}")
        for key in value:
            reason = why_unusable(key)
            if reason is not None:
                raise AdapterError(
                    f"has the pattern {printable(repr(key))}, which {reason}; name the modules "
                    "themselves",
                    file=self._file,
                    field=name,
                )
        return value

    def refuse_rest(self) -> None:
        for name, value in self._rest.items():
            reason = _REFUSED.get(
                name,
                "not understood here, and it may change the weights; upgrade nola-edge, or remove "
                "the field if you know that it does not matter",
            )
            raise AdapterError(
                f"is {printable(value)}: {reason}", file=self._file, field=name, value=value
            )
