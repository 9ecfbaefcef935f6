"""``adapter_config.json`` of a TinyLoRA: the fields of PEFT's that matter to merged weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.nola_config import MAX_SEED
from nola_edge.adapters.peft_fields import Fields
from nola_edge.adapters.stored import StoredConfig

if TYPE_CHECKING:
    from pathlib import Path

#: Fields that say how training began.
_TRAINING = frozenset({"init_v_bound", "init_weights", "tinylora_dropout"})


@dataclass(frozen=True)
class TinyLoraConfig(StoredConfig):
    """The fields of a TinyLoRA that matter to merged weights, and the rest as it was.

    Attributes
    ----------
    r : int
        At most: a weight has no more singular vectors than rows and columns.
    u : int
        Trained numbers of a group.
    weight_tying : float
        0 for a vector of each module, 1 for one of all, or between.
    projection_seed : int
    """

    r: int
    u: int
    weight_tying: float
    projection_seed: int

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
            **fields.common("tinylora_only", _TRAINING),
        )
        fields.refuse_rest()
        return config
