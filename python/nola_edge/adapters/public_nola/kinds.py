"""Which of the public code's checkpoints a file is, told by the names of its tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.peft_folder import WEIGHTS_NAME
from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile, read_fields
from nola_edge.adapters.public_nola.gpt2 import read_gpt2
from nola_edge.adapters.public_nola.llama import read_llama
from nola_edge.adapters.public_nola.vision import read_vision
from nola_edge.errors import AdapterError, ArgumentError, FormatError, printable
from nola_edge.files.input_file import opening
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nola_edge.adapters.public_nola.contents import Contents
    from nola_edge.adapters.public_nola.devices import DrawnOn

_SEEDED = r"\.lora_[AB]\.(?:[^.]+\.)?(?:seed|coefficients)"
_GPT2_LAYER = r"(?:nola_query|nola_value|p1_nola|p2_nola)"
_SIGNS = {
    "vision transformer": re.compile(r"fc[12]_(?:alpha|beta)_\d{3,}"),
    "GPT-2": re.compile(rf".*\.{_GPT2_LAYER}{_SEEDED}"),
    "LLaMA (PEFT)": re.compile(rf"(?!.*\.{_GPT2_LAYER}\.).+{_SEEDED}"),
}
_DRAFT = re.compile(rf".*\.{_GPT2_LAYER}\.(?:seed_[ab]|alpha|beta)")
_SHOWN = 3


def is_public_checkpoint(path: Path) -> bool:
    """Tell whether a file, or a folder, is a checkpoint of the public NOLA code.

    By ``use_nola`` in a folder's configuration; without one, by the names of the tensors.
    """
    try:
        with opening(path):
            fields = read_fields(path)
            if fields:
                return fields.get("use_nola") is True
            with SafetensorsFile.open(path / WEIGHTS_NAME if path.is_dir() else path) as file:
                return bool(_kinds(file.tensors))
    except FormatError:
        return False  # said by who reads it


def read_contents(
    file: CheckpointFile,
    *,
    drawn_on: DrawnOn | None,
    lora_alpha: float | None,
    rank: int | None,
    hidden: int | None,
) -> Contents:
    """Find out the kind of a checkpoint, read it and check it.

    Raises
    ------
    AdapterError
        If the names fit no kind, or more than one.
    ArgumentError
        If an argument is missing for this kind, or does not belong to it.
    NolaEdgeError
    """
    kind = _kind(file)
    vision = kind == "vision transformer"
    foreign = {"lora_alpha": lora_alpha} if vision else {"rank": rank, "hidden": hidden}
    for name, value in foreign.items():
        if value is not None:
            raise ArgumentError(f"does not belong to a checkpoint of {kind}", field=name)
    if vision:
        return read_vision(file, drawn_on, rank, hidden)
    contents = (read_gpt2 if kind == "GPT-2" else read_llama)(file, lora_alpha)
    for module in contents.layers:
        if not module.isprintable() or not module:
            raise file.refusal(module, "cannot be a module's name")
    return contents


def _kinds(names: Iterable[str]) -> dict[str, str]:
    """Return each kind that is there, with a tensor of it."""
    found: dict[str, str] = {}
    for name in names:
        for kind, sign in _SIGNS.items():
            if sign.fullmatch(name):
                found.setdefault(kind, name)
    return found


def _kind(file: CheckpointFile) -> str:
    kinds = _kinds(file.tensors)
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds:
        found = "; ".join(f"{printable(name)} of {kind}" for kind, name in kinds.items())
        raise AdapterError(f"holds tensors of different kinds: {found}", file=file.path)
    draft = next((name for name in file.tensors if _DRAFT.fullmatch(name)), None)
    if draft is not None:
        raise file.refusal(
            draft,
            "is of examples/NLG of the public code, a draft that does not run as published, so "
            "that what made it is not known",
        )
    if any(".lora_" in name for name in file.tensors):
        raise AdapterError(
            "is a LoRA without NOLA: it has no seed and no coefficients", file=file.path
        )
    shown = ", ".join(printable(name) for name in list(file.tensors)[:_SHOWN]) or "no tensors"
    more = ", …" if len(file.tensors) > _SHOWN else ""
    raise AdapterError(
        f"is no checkpoint of the public NOLA code; it holds {shown}{more}", file=file.path
    )
