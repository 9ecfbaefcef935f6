"""``adapter_config.json`` of a TinyLoRA: the fields of PEFT's that matter to merged weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.nola_config import MAX_SEED
from nola_edge.adapters.peft_fields import BOOKKEEPING, Fields

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.adapters.tensor_parts import TensorPart

#: Fields that say how training began.
_TRAINING = frozenset({"init_v_bound", "init_weights", "tinylora_dropout"})


@dataclass(frozen=True)
class TinyLoraConfig:
    """The fields that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
        At most: a weight has no more singular vectors than rows and columns.
    u : int
        Trained numbers of a group.
    weight_tying : float
        0 for a vector of each module, 1 for one of all, or between.
    projection_seed : int
    fan_in_fan_out : bool
    bias : str
        ``"none"``, ``"all"`` or ``"tinylora_only"``: whether bias tensors are in the file.
    modules_to_save : tuple of str
        Modules whose tensors are in the file whole.
    tensors : dict
        Module, or name of a whole tensor -> :class:`TensorPart`, where names do not say it.
    bookkeeping : dict
        Known fields without influence on the weights, kept as they are.
    """

    r: int
    u: int
    weight_tying: float
    projection_seed: int
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    tensors: dict[str, TensorPart] = field(default_factory=dict)
    bookkeeping: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(data: dict[str, Any], *, file: Path) -> TinyLoraConfig:
        """Check a parsed ``adapter_config.json``.

        Raises
        ------
        AdapterError
            Naming the file, the field and its value.
        """
        fields = Fields(data, file, {})
        fields.take("save_projection", True)  # the file itself says whether they are there
        config = TinyLoraConfig(
            r=fields.rank("r"),
            u=fields.rank("u"),
            weight_tying=fields.number("weight_tying", 0, 1),
            projection_seed=fields.integer("projection_seed", 0, MAX_SEED),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            bias=fields.choice("bias", ("none", "all", "tinylora_only")),
            modules_to_save=fields.names("modules_to_save"),
            tensors=fields.parts("tensors"),
            bookkeeping=fields.those_of(BOOKKEEPING | _TRAINING),
        )
        fields.refuse_rest()
        return config
