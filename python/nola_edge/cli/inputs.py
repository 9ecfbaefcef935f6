"""Bases and adapters as commands take them: by path, or by their id on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nola_edge.cli import output as ui

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nola_edge.adapters import LowRankAdapter

    Given = list[tuple[str | LowRankAdapter, float]]

revision_option = click.option(
    "--revision",
    metavar="NAME",
    help="Branch, tag or commit of a base given as a Hub id. For an adapter, add it to the id: "
    "owner/name@NAME.",
)


drawn_on_option = click.option(
    "--drawn-on",
    metavar="DEVICE",
    help="For checkpoints of the public NOLA code: the device they were trained on. cpu, or a GPU: "
    "a100, h100-sxm, v100, t4 and others, or its size as MULTIPROCESSORSxTHREADS.",
)
lora_alpha_option = click.option(
    "--lora-alpha",
    type=float,
    metavar="ALPHA",
    help="For such checkpoints: the value used in training, if no file records it.",
)


moe_layout_option = click.option(
    "--moe-layout",
    type=click.Choice(["peft", "unsloth"]),
    help="For LoRAs of stacked experts (target_parameters) that do not record it: whether their "
    "factors are laid out as by PEFT, or as by Unsloth until September 2026.",
)


def public_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that checkpoints of the public NOLA code need."""
    return drawn_on_option(lora_alpha_option(command))


rename_option = click.option(
    "--rename",
    metavar="NEW=OLD",
    multiple=True,
    help="BASE calls OLD what ADAPTER calls NEW: one or more parts of a module's name. May be "
    "repeated. OLD[0:64] selects outputs of a layer that holds several modules.",
)

#: What commands say of a base that is a GGUF file …
GGUF_NOTE = "the base was not checked: adapters record no fingerprint of a GGUF file"
#: … and what they add to JSON.
GGUF_FOUND = {"base_checked": False, "notes": [GGUF_NOTE]}


def refuse_to_check_gguf() -> None:
    """Refuse an explicit ``--check-base`` for a GGUF file.

    Raises
    ------
    click.UsageError
    """
    context = click.get_current_context()
    asked = context.get_parameter_source("check_base") is ParameterSource.COMMANDLINE
    if asked and context.params["check_base"]:
        raise click.UsageError(
            "--check-base is for checkpoints: adapters record no fingerprint of a GGUF file; "
            "leave it out"
        )


def refuse_to_rename_gguf(rename: tuple[str, ...]) -> None:
    """Refuse ``--rename`` for a GGUF file.

    Raises
    ------
    click.UsageError
    """
    if rename:
        raise click.UsageError(
            "--rename is for checkpoints: names in a GGUF file follow from its architecture"
        )


def local_base(base: str, revision: str | None) -> str:
    """Return the path of a base, which is downloaded if it is an id on the Hub.

    Raises
    ------
    click.UsageError
        If a base that is here is said to have a revision.
    CheckpointError
        If there is none.
    """
    from nola_edge.files.hub import base_path

    if revision is not None and os.path.exists(base):
        raise click.UsageError(f"--revision is for a base on the Hub, and {base} is a local path")
    return str(base_path(base, revision))


def local_adapters(
    texts: Iterable[str],
    order: str = "",
    *,
    drawn_on: str | None = None,
    lora_alpha: float | None = None,
    moe_layout: str | None = None,
) -> Given:
    """Return path and weight of each adapter; one that is an id on the Hub is downloaded.

    Checkpoints of the public NOLA code, and LoRAs of stacked experts, are loaded if the options say
    how.

    Parameters
    ----------
    texts : iterable of str
    order : str
        Order of the command's arguments, for users who give a model instead of an adapter.
    drawn_on : str, optional
    lora_alpha : float, optional
    moe_layout : {"peft", "unsloth"}, optional
        As for :func:`nola_edge.load_adapter`, of those that are such.

    Raises
    ------
    NolaEdgeError
        If there is no such adapter, or a weight is not a number.
    click.UsageError
        If an option is given that is for such adapters, and none of them is one.
    """
    from nola_edge.adapters.hub import adapter_path
    from nola_edge.adapters.peft_folder import holds_model
    from nola_edge.errors import AdapterError

    given = [ui.parse_adapter(text) for text in texts]
    found = [(adapter_path(location), weight) for location, weight in given]
    for path, _ in found:
        if order and holds_model(path):
            raise AdapterError(f"holds a model, not an adapter (the order is {order})", file=path)
    loaded: dict[Path, LowRankAdapter] = {}
    if drawn_on is not None or lora_alpha is not None:
        loaded |= _public_checkpoints(found, drawn_on=drawn_on, lora_alpha=lora_alpha)
    if moe_layout is not None:
        loaded |= _of_experts(found, moe_layout)
    return [(loaded.get(path, str(path)), weight) for path, weight in found]


def _public_checkpoints(
    found: Iterable[tuple[Path, float]], **options: Any
) -> dict[Path, LowRankAdapter]:
    from nola_edge.adapters import load_adapter

    paths = [path for path, _ in found if _is_public(path)]
    if not paths:
        raise click.UsageError(
            "--drawn-on and --lora-alpha are for checkpoints of the public NOLA code, and none was "
            "given; leave them out"
        )
    return {path: load_adapter(path, **options) for path in paths}


def _is_public(path: Path) -> bool:
    from nola_edge.adapters.peft_folder import read_config
    from nola_edge.adapters.public_nola.recognise import is_public_checkpoint
    from nola_edge.files.input_file import opening

    with opening(path):
        return is_public_checkpoint(path, read_config(path))


def _of_experts(found: Iterable[tuple[Path, float]], layout: str) -> dict[Path, LowRankAdapter]:
    from nola_edge.adapters.load import is_of_experts, load_adapter

    paths = [path for path, _ in found if is_of_experts(path)]
    if not paths:
        raise click.UsageError(
            "--moe-layout is for LoRAs of stacked experts (target_parameters), and none was given; "
            "leave it out"
        )
    return {path: load_adapter(path, moe_layout=layout) for path in paths}
