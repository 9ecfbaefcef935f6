"""``adapter_config.json`` of a LoRA: the fields of PEFT's that matter to merged weights.

A field that may change the weights and is not understood must be off, or the adapter is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.peft_fields import WITH_PEFT, Fields, is_alpha, is_rank
from nola_edge.adapters.stored import StoredConfig
from nola_edge.errors import AdapterError, ArgumentError, printable

if TYPE_CHECKING:
    from pathlib import Path

#: Fields that say how the adapter was trained; they never change merged weights.
_TRAINING = frozenset(
    {
        "corda_config",
        "eva_config",
        "loftq_config",
        "lora_dropout",
        "lora_dtype",
        "lora_ga_config",
        "lorap_lr_ratio",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
    }
)
_DEPENDS = (
    "what it adds depends on the input, so it cannot be merged into weights; serve it with PEFT"
)
#: Fields of which it is known what they do, and what to do about them.
_REFUSED = {
    "use_qalora": f"its A is grouped over inputs, which is not supported here; {WITH_PEFT}",
    "use_bdlora": f"its factors are block-diagonal, which is not supported here; {WITH_PEFT}",
    "kasa_config": f"it has a diagonal between B and A, and a changed base; {WITH_PEFT}",
    "trainable_token_indices": f"single rows of the embedding were trained; {WITH_PEFT}",
    "layer_replication": "it is for a base with repeated layers, which no file holds; use PEFT",
    "ensure_weight_tying": (
        "input and output share one adapter; train with ensure_weight_tying=False, or merge it "
        "with PEFT"
    ),
    "arrow_config": _DEPENDS,
    "alora_invocation_tokens": _DEPENDS,
    "monteclora_config": _DEPENDS,
}
#: What Unsloth has written of stacks of experts since September 2026, and ``moe_layout`` means.
_LAYOUT = "lora_B_layout"
_LAYOUTS = {"peft": "rank_major", "unsloth": "grouped_by_expert"}
#: Beginnings of init_lora_weights after which training goes on from the base as it was.
_KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class LoraConfig(StoredConfig):
    """The fields of a LoRA that matter to merged weights, and the rest as it was.

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
    lora_bias : bool
        Whether B has a bias, which is added to the layer's.
    use_dora : bool
        Whether merged weights are scaled to norms that are in the file.
    target_parameters : tuple of str
        Ends of names of parameters that were adapted themselves: stacks of experts.
    expert_layout : str
        How B of a stack is laid out: ``"rank_major"``, ``"grouped_by_expert"``, or ``"unknown"``.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    lora_bias: bool = False
    use_dora: bool = False
    target_parameters: tuple[str, ...] = ()
    expert_layout: str = "unknown"

    @staticmethod
    def from_json(data: dict[str, Any], *, file: Path) -> LoraConfig:
        """Check a parsed ``adapter_config.json``.

        Raises
        ------
        AdapterError
            Naming the file, the field and its value.
        """
        fields = Fields(data, file, _REFUSED)
        start = fields.take("init_lora_weights", True)
        if not (isinstance(start, bool) or start in _KEEP_BASE):
            raise AdapterError(
                f"is {printable(repr(start))}: this initialisation changes the base, and the "
                "adapter belongs to the changed base; merge it with PEFT, or save it with "
                "save_pretrained(…, path_initial_model_for_weight_conversion=…), which turns it "
                "into a plain LoRA",
                file=file,
                field="init_lora_weights",
                value=start,
            )
        config = LoraConfig(
            r=fields.rank("r"),
            lora_alpha=fields.alpha("lora_alpha"),
            use_rslora=fields.flag("use_rslora"),
            rank_pattern=fields.pattern("rank_pattern", is_rank, "a rank"),
            alpha_pattern=fields.pattern("alpha_pattern", is_alpha, "a number"),
            lora_bias=fields.flag("lora_bias"),
            use_dora=fields.flag("use_dora"),
            target_parameters=fields.names("target_parameters"),
            expert_layout=fields.choice(_LAYOUT, ("unknown", *_LAYOUTS.values())),
            **fields.common("lora_only", _TRAINING),
        )
        if config.lora_bias and config.bias != "none":
            raise AdapterError(
                f"is {config.bias!r} together with lora_bias, which is not supported here; "
                f"{WITH_PEFT}",
                file=file,
                field="bias",
            )
        fields.refuse_rest()
        return config

    @staticmethod
    def with_layout(data: dict[str, Any], moe_layout: str | None, *, file: Path) -> dict[str, Any]:
        """Return a parsed configuration that says how stacks of experts are laid out.

        Parameters
        ----------
        data : dict
        moe_layout : {"peft", "unsloth"}, optional
            What the caller says, for a LoRA of stacks of experts.
        file : Path
            Named in errors.

        Raises
        ------
        ArgumentError
            If there is no such layout.
        AdapterError
            If the configuration says another.
        """
        if moe_layout is None:
            return data
        if moe_layout not in _LAYOUTS:
            raise ArgumentError(
                f"is {printable(repr(moe_layout))}, must be peft or unsloth",
                field="moe_layout",
                value=moe_layout,
            )
        if not data.get("target_parameters"):
            raise ArgumentError(
                "is for a LoRA of stacked experts (target_parameters), and this is not one; leave "
                "it out",
                file=file,
                field="moe_layout",
            )
        layout = _LAYOUTS[moe_layout]
        if data.get(_LAYOUT, layout) != layout:
            raise AdapterError(
                f"is {printable(repr(data[_LAYOUT]))} according to the program that trained it, "
                f"but moe_layout is {moe_layout}, which is {layout}; leave out moe_layout",
                file=file,
                field=_LAYOUT,
                value=data[_LAYOUT],
            )
        return {**data, _LAYOUT: layout}

    def in_other_layout(self) -> LoraConfig:
        """Return the configuration of stacks of experts that are laid out in the other way."""
        (other,) = set(_LAYOUTS.values()) - {self.expert_layout}
        return replace(self, expert_layout=other)

    def scaling(self, rank: int, alpha: float) -> float:
        """Return s = alpha / r, or alpha / sqrt(r) with rsLoRA, in double."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)
