"""Whether a file is one of the public code's checkpoints, and of which kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.peft_folder import WEIGHTS_NAME
from nola_edge.errors import FormatError
from nola_edge.files.input_file import opening
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

VISION, GPT2, LLAMA = "vision transformer", "GPT-2", "LLaMA (PEFT)"
_SEEDED = r"\.lora_[AB]\.(?:[^.]+\.)?(?:seed|coefficients)"
#: What the GPT-2 code calls its layers.
GPT2_LAYER = r"(?:nola_query|nola_value|p1_nola|p2_nola)"
_SIGNS = {
    VISION: r"fc[12]_(?:alpha|beta)_\d{3,}",
    GPT2: rf".*\.{GPT2_LAYER}{_SEEDED}",
    LLAMA: rf"(?!.*\.{GPT2_LAYER}\.).+{_SEEDED}",
}


def kinds_among(names: Iterable[str]) -> dict[str, str]:
    """Return each kind whose tensors are among these, with the name of one."""
    found: dict[str, str] = {}
    for name in names:
        for kind, sign in _SIGNS.items():
            if kind not in found and re.fullmatch(sign, name):
                found[kind] = name
    return found


def is_public_checkpoint(path: Path, fields: Mapping[str, Any]) -> bool:
    """Tell whether a file, or a folder, is a checkpoint of the public NOLA code.

    Of a configuration's fields, ``use_nola`` says it; without any, the names of the tensors do.
    """
    if fields:
        return fields.get("use_nola") is True
    try:
        with (
            opening(path),
            SafetensorsFile.open(path / WEIGHTS_NAME if path.is_dir() else path) as file,
        ):
            return bool(kinds_among(file.tensors))
    except FormatError:
        return False  # said by who reads it
