"""Find out what model a base is, from a GGUF file or from a Hugging Face ``config.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.errors import MismatchError, printable
from nola_edge.gguf.architectures import (
    Architecture,
    Model,
    architecture_of_model_type,
    head_counts,
    known_architecture,
)

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.files.gguf import GgufFile

_SPLIT = "split.count"


def model_of_gguf(file: GgufFile) -> Model:
    """Read architecture and heads from a GGUF file's metadata.

    Raises
    ------
    MismatchError
        If it is not a whole model of a known architecture.
    """
    if file.metadata.get("general.type", "model") != "model":
        raise MismatchError(
            f"is {printable(repr(file.metadata['general.type']))}, not a model",
            file=file.path,
            field="general.type",
        )
    if file.metadata.get(_SPLIT, 1) not in (0, 1):
        raise MismatchError(
            "the model is split over several files; join them with llama-gguf-split --merge",
            file=file.path,
            field=_SPLIT,
        )
    key = "general.architecture"
    architecture = known_architecture(file.metadata.get(key), file.path, key)
    prefix = f"{architecture.name}.attention.head_count"
    return _model(architecture, file.metadata, prefix, f"{prefix}_kv", file.path)


def model_of_config(config: dict[str, Any], path: Path) -> Model:
    """Read architecture and heads from a Hugging Face configuration.

    Raises
    ------
    MismatchError
        If the model type is not known.
    """
    architecture = architecture_of_model_type(config.get("model_type"), path)
    text = config.get("text_config")
    fields = text if isinstance(text, dict) else config
    return _model(architecture, fields, "num_attention_heads", "num_key_value_heads", path)


def _model(
    architecture: Architecture, fields: dict[str, Any], heads: str, key_heads: str, path: Path
) -> Model:
    count = head_counts(fields.get(heads) or 0, path, heads)
    return Model(architecture, count, head_counts(fields.get(key_heads) or count, path, key_heads))
