"""Bases and adapters as commands take them: by path, or by their id on the Hugging Face Hub."""

from __future__ import annotations

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
    help="Branch, tag or commit, of a base that is a Hub id. An adapter's belongs to its id: "
    "owner/name@NAME.",
)


drawn_on_option = click.option(
    "--drawn-on",
    metavar="DEVICE",
    help="Of checkpoints of the public NOLA code: what they were trained on. cpu, or a GPU: a100, "
    "h100-sxm, v100, t4 and others, or its size as MULTIPROCESSORSxTHREADS.",
)
lora_alpha_option = click.option(
    "--lora-alpha",
    type=float,
    metavar="ALPHA",
    help="Of such checkpoints: what training was given, where no file says it.",
)


def public_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that checkpoints of the public NOLA code need."""
    return drawn_on_option(lora_alpha_option(command))


rename_option = click.option(
    "--rename",
    metavar="NEW=OLD",
    multiple=True,
    help="What ADAPTER calls NEW, as one part of a module's name or several, BASE calls OLD. May "
    "be repeated. OLD[0:64]: these outputs of a layer that holds several.",
)

#: What commands say of a base that is a GGUF file …
GGUF_NOTE = "the base was not checked: a GGUF file has no fingerprint"
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
            "--check-base is for checkpoints: a GGUF file has no fingerprint; leave it out"
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

    if revision is not None and Path(base).exists():
        raise click.UsageError(f"--revision is for a base on the Hub, and {base} is here")
    return str(base_path(base, revision))


def local_adapters(
    texts: Iterable[str],
    order: str = "",
    *,
    drawn_on: str | None = None,
    lora_alpha: float | None = None,
) -> Given:
    """Return path and weight of each adapter; one that is an id on the Hub is downloaded.

    Checkpoints of the public NOLA code are loaded, if it is said how.

    Parameters
    ----------
    texts : iterable of str
    order : str
        Of the command's arguments, for who gives a model in the place of an adapter.
    drawn_on : str, optional
    lora_alpha : float, optional
        As for :func:`nola_edge.load_adapter`, of those that are such checkpoints.

    Raises
    ------
    NolaEdgeError
        If there is no such adapter, or a weight is no number.
    click.UsageError
        If it is said how to load such checkpoints, and none is given.
    """
    from nola_edge.adapters.hub import adapter_path
    from nola_edge.adapters.peft_folder import holds_model
    from nola_edge.errors import AdapterError

    given = [ui.parse_adapter(text) for text in texts]
    found = [(adapter_path(location), weight) for location, weight in given]
    for path, _ in found:
        if order and holds_model(path):
            raise AdapterError(f"holds a model, not an adapter (the order is {order})", file=path)
    if drawn_on is None and lora_alpha is None:
        return [(str(path), weight) for path, weight in found]
    return _with_public_checkpoints(found, drawn_on=drawn_on, lora_alpha=lora_alpha)


def _with_public_checkpoints(found: Iterable[tuple[Path, float]], **options: Any) -> Given:
    given = [(_loaded_if_public(path, options), weight) for path, weight in found]
    if all(isinstance(adapter, str) for adapter, _ in given):
        raise click.UsageError(
            "--drawn-on and --lora-alpha are for checkpoints of the public NOLA code, and none is "
            "given; leave them out"
        )
    return given


def _loaded_if_public(path: Path, options: dict[str, Any]) -> str | LowRankAdapter:
    from nola_edge.adapters import load_adapter
    from nola_edge.adapters.public_nola.checkpoint_file import read_fields
    from nola_edge.adapters.public_nola.recognise import is_public_checkpoint
    from nola_edge.files.input_file import opening

    with opening(path):
        if not is_public_checkpoint(path, read_fields(path)):
            return str(path)
        return load_adapter(path, **options)
