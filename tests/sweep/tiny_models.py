"""Tiny models of any architecture that transformers knows: its own configuration, shrunk."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

#: What a model is made as, the first that an architecture has.
_HEADS = (
    "MODEL_FOR_CAUSAL_LM",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "MODEL_FOR_MULTIMODAL_LM",
    "MODEL_FOR_MASKED_LM",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "MODEL_FOR_IMAGE_CLASSIFICATION",
    "MODEL_FOR_CTC",
    "MODEL_FOR_AUDIO_CLASSIFICATION",
    "MODEL_FOR_OBJECT_DETECTION",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION",
    "MODEL",
    "MODEL_FOR_PRETRAINING",
)
#: What every width is divided by: the first with which a model can be made.
_DIVISORS = (16, 8, 4, 32, 2, 1)
_MAX_PARAMETERS = 12_000_000
_LAYERS = re.compile(
    r"(num|n)_(\w+_)?(layers?|blocks|stages)$|^n_layer|_layers$|^depth$|^num_hidden_layers|_depth$"
)
_WIDTH = re.compile(r"size|dim|channels|width|d_model|d_ff|d_kv|n_embd|n_inner|hidden|ffn|rank|mlp")
_KEPT = re.compile(r"patch|image|kernel|stride|ratio|conv_|window|_type|vocab|grid|max_|bins|group")
_FEW = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0}


def architectures() -> list[str]:
    """Return the model types of transformers that have a model."""
    return [kind for kind in configuration_auto.CONFIG_MAPPING_NAMES if class_name(kind)]


def class_name(kind: str) -> str | None:
    """Return the model that stands for a model type."""
    for head in _HEADS:
        found = getattr(modeling_auto, f"{head}_MAPPING_NAMES", {}).get(kind)
        if found is not None:
            return found if isinstance(found, str) else found[0]
    return None


def make(kind: str) -> PreTrainedModel:
    """Make a tiny model with random weights.

    Raises
    ------
    Exception
        The first that its making met, where no divisor of the widths led to a model.
    """
    model_class = getattr(transformers, str(class_name(kind)))
    first: Exception | None = None
    for config in _configurations(kind):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(config).parameters())
            if size > _MAX_PARAMETERS:
                raise ValueError(f"{size} parameters")
            torch.manual_seed(0)
            return _random(model_class(config))
        except Exception as error:
            first = first or error
    raise first or ValueError("no configuration")


@torch.no_grad()
def _random(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.normal_(0, 0.05)
    return model.eval()


def _configurations(kind: str) -> Iterator[PretrainedConfig]:
    config_class = transformers.CONFIG_MAPPING[kind]
    for divisor in _DIVISORS:
        for make_config in (_made_anew, _changed):
            with contextlib.suppress(Exception):  # the other way, or another divisor, may do
                yield make_config(config_class(), divisor)


def _made_anew(config: PretrainedConfig, divisor: int) -> PretrainedConfig:
    """Return a configuration that was made of changed values: what follows from them fits."""
    return type(config)(**_changes(config, divisor))


def _changes(config: PretrainedConfig, divisor: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):
            found = _changes(value, divisor)
            changes[name] = {"model_type": value.model_type, **found} if found else None
        elif not name.startswith("_") and _new_value(config, name, divisor) != value:
            changes[name] = _new_value(config, name, divisor)
    return {name: value for name, value in changes.items() if value is not None}


def _changed(config: PretrainedConfig, divisor: int) -> PretrainedConfig:
    """Divide the widths of a configuration and of those in it, in place."""
    changes = {name: _new_value(config, name, divisor) for name in vars(config)}
    for name, value in changes.items():
        if hasattr(value, "model_type"):
            _changed(value, divisor)
        elif vars(config)[name] != value:
            setattr(config, name, value)
    return config


def _new_value(config: PretrainedConfig, name: str, divisor: int) -> Any:
    value = vars(config)[name]
    if name.endswith("token_id") and isinstance(value, int):
        return min(value, 3)
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(value, list | tuple) and layers and len(value) == layers > 2:
        return value[:1] + value[-1:]  # one of each layer
    return _smaller(name, value, divisor)


def _smaller(name: str, value: Any, divisor: int) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        if name.startswith("depth") or _LAYERS.search(name):
            return type(value)(min(item, 1) for item in value)
        return type(value)(_smaller(name, item, divisor) for item in value)
    if type(value) is not int:
        return value
    if name in _FEW:
        return min(value, _FEW[name])
    if "vocab" in name:
        return min(value, 512)
    if "experts" in name and value > 4:
        return 4
    if name in ("image_size",) and value > 64:
        return value // 4
    if "max_position" in name or name in ("n_positions", "max_seq_len"):
        return min(value, 256)
    if _LAYERS.search(name):
        return min(value, 2)
    if _WIDTH.search(name) and not _KEPT.search(name) and value % divisor == 0 and value > 32:
        return value // divisor
    return value
