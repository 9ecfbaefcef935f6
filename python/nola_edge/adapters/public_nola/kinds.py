"""Reads a checkpoint of whichever kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.public_nola.gpt2 import read_gpt2
from nola_edge.adapters.public_nola.llama import read_llama
from nola_edge.adapters.public_nola.recognise import GPT2, GPT2_LAYER, LLAMA, VISION, kinds_among
from nola_edge.adapters.public_nola.vision import read_vision
from nola_edge.errors import AdapterError, ArgumentError, printable

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile
    from nola_edge.adapters.public_nola.contents import Contents
    from nola_edge.adapters.public_nola.devices import DrawnOn

_DRAFT = re.compile(rf".*\.{GPT2_LAYER}\.(?:seed_[ab]|alpha|beta)")
_SHOWN = 3


def read_contents(
    file: CheckpointFile,
    *,
    drawn_on: DrawnOn | None,
    lora_alpha: float | None,
    rank: int | None,
    hidden: int | None,
) -> Contents:
    """Find out the kind of a checkpoint, read it and check it.

    Parameters
    ----------
    file : CheckpointFile
    drawn_on : DrawnOn, optional
        Where the random matrices were drawn, as far as the caller knows.
    lora_alpha : float, optional
        Of LLaMA and GPT-2: what training was given, where no configuration says it.
    rank, hidden : int, optional
        Of a vision transformer: the rank (default: found by the recorded values) and the width of
        the MLP (default: the base's; where there is none, as timm's models of that embedding have
        it).

    Raises
    ------
    AdapterError
        If the names fit no kind, or more than one.
    ArgumentError
        If an argument is missing for this kind, or does not belong to it.
    NolaEdgeError
    """
    kind = _kind(file)
    vision = kind == VISION
    foreign = {"lora_alpha": lora_alpha} if vision else {"rank": rank, "hidden": hidden}
    for name, value in foreign.items():
        if value is not None:
            raise ArgumentError(f"does not belong to a checkpoint of {kind}", field=name)
    if vision:
        return read_vision(file, drawn_on, rank, hidden)
    return {GPT2: read_gpt2, LLAMA: read_llama}[kind](file, lora_alpha)


def _kind(file: CheckpointFile) -> str:
    kinds = kinds_among(file.tensors)
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds:
        found = "; ".join(f"{printable(name)} of {kind}" for kind, name in kinds.items())
        raise AdapterError(f"holds tensors of different kinds: {found}", file=file.path)
    draft = next((name for name in file.tensors if _DRAFT.fullmatch(name)), None)
    if draft is not None:
        raise file.refusal(
            draft,
            "comes from examples/NLG of the public code, a draft that does not run as published, "
            "so it is unknown what made it",
        )
    if any(".lora_" in name for name in file.tensors):
        raise AdapterError(
            "is a LoRA without NOLA: it has no seed and no coefficients", file=file.path
        )
    shown = ", ".join(printable(name) for name in list(file.tensors)[:_SHOWN]) or "no tensors"
    more = ", …" if len(file.tensors) > _SHOWN else ""
    raise AdapterError(
        f"is not a checkpoint of the public NOLA code; it holds {shown}{more}", file=file.path
    )
