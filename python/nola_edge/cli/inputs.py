"""Bases and adapters as commands take them: by path, or by their id on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from nola_edge.cli import output as ui

if TYPE_CHECKING:
    from collections.abc import Iterable

revision_option = click.option(
    "--revision",
    metavar="NAME",
    help="Branch, tag or commit, of a base that is a Hub id. An adapter's belongs to its id: "
    "owner/name@NAME.",
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


def local_adapters(texts: Iterable[str], order: str = "") -> list[tuple[str, float]]:
    """Return path and weight of each adapter; one that is an id on the Hub is downloaded.

    Parameters
    ----------
    texts : iterable of str
    order : str
        Of the command's arguments, for who gives a model in the place of an adapter.

    Raises
    ------
    NolaEdgeError
        If there is no such adapter, or a weight is no number.
    """
    from nola_edge.adapters.hub import adapter_path
    from nola_edge.adapters.peft_folder import holds_model
    from nola_edge.errors import AdapterError

    given = [ui.parse_adapter(text) for text in texts]
    found = [(adapter_path(location), weight) for location, weight in given]
    for path, _ in found:
        if order and holds_model(path):
            raise AdapterError(f"holds a model, not an adapter (the order is {order})", file=path)
    return [(str(path), weight) for path, weight in found]
