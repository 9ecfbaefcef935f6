"""Which of the public code's checkpoints a file is, told by the names of its tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.public_nola.gpt2 import plan_gpt2
from nola_edge.adapters.public_nola.llama import plan_peft
from nola_edge.adapters.public_nola.vision import plan_vit
from nola_edge.errors import AdapterError, ArgumentError, printable

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import Source
    from nola_edge.adapters.public_nola.contents import Plan
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


def plan_conversion(
    source: Source,
    *,
    drawn_on: DrawnOn | None,
    lora_alpha: float | None,
    rank: int | None,
    hidden: int | None,
) -> Plan:
    """Find out the kind of a checkpoint, read it and check it.

    Raises
    ------
    AdapterError
        If the names fit no kind, or more than one.
    ArgumentError
        If an argument is missing for this kind, or does not belong to it.
    NolaEdgeError
    """
    style = _style(source)
    transformer = style == "vision transformer"
    foreign = {"lora_alpha": lora_alpha} if transformer else {"rank": rank, "hidden": hidden}
    for name, value in foreign.items():
        if value is not None:
            raise ArgumentError(f"does not belong to a checkpoint of {style}", field=name)
    if transformer:
        plan = plan_vit(source, drawn_on, rank, hidden)
    else:
        plan = (plan_gpt2 if style == "GPT-2" else plan_peft)(source, lora_alpha)
    _check_modules(source, plan)
    return plan


def _check_modules(source: Source, plan: Plan) -> None:
    seen: set[str] = set()
    for layer in plan.layers:
        if not layer.module.isprintable() or not layer.module:
            raise AdapterError("cannot be a module's name", file=source.path, field=layer.module)
        if layer.module in seen:
            raise AdapterError(
                "is there twice, with and without a prefix", file=source.path, field=layer.module
            )
        seen.add(layer.module)


def _style(source: Source) -> str:
    examples: dict[str, str] = {}
    for style, sign in _SIGNS.items():
        name = next((name for name in source.tensors if sign.fullmatch(name)), None)
        if name is not None:
            examples[style] = name
    if len(examples) == 1:
        return next(iter(examples))
    if examples:
        found = "; ".join(f"{printable(name)} of {style}" for style, name in examples.items())
        raise AdapterError(f"holds tensors of different kinds: {found}", file=source.path)
    draft = next((name for name in source.tensors if _DRAFT.fullmatch(name)), None)
    if draft is not None:
        raise AdapterError(
            "is of examples/NLG of the public code, a draft that does not run as published, so "
            "that what made it is not known",
            file=source.path,
            field=draft,
        )
    if any(".lora_" in name for name in source.tensors):
        raise AdapterError(
            "is a LoRA without NOLA: it has no seed and no coefficients", file=source.path
        )
    shown = ", ".join(printable(name) for name in list(source.tensors)[:_SHOWN]) or "no tensors"
    raise AdapterError(
        f"is no checkpoint of the public NOLA code; it holds {shown}"
        + (", …" if len(source.tensors) > _SHOWN else ""),
        file=source.path,
    )
