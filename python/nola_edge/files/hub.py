"""Find what is given by a path or by its id on the Hugging Face Hub.

A local path always works, an id where ``huggingface_hub`` is installed (the extra ``hub``). A path
that is not here is looked up, with a line that says so, only if it cannot be a mistyped one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nola_edge import arguments
from nola_edge.errors import (
    ArgumentError,
    CheckpointError,
    NolaEdgeError,
    printable,
)
from nola_edge.files.input_file import is_here

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

# Without handlers of the caller's, Python prints a warning as one line on stderr.
_HUB_ID = r"(?P<name>(?P<owner>\w[\w.-]*)/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?"
#: One of them is enough.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_YES = ("1", "ON", "YES", "TRUE")


class Kind(NamedTuple):
    """What is looked for.

    Attributes
    ----------
    what : str
        With its article.
    argument : str
        Its name among a function's arguments.
    error : type
        Of a refusal.
    config : str
        A file that each has, by which a download is found again.
    download : callable
        From name and revision to the local folder.
    cached : callable
        What to say of the folder of an earlier download, after "taken from the cache".
    """

    what: str
    argument: str
    error: type[NolaEdgeError]
    config: str
    download: Callable[[str, str | None], str]
    cached: Callable[[Path], str] = lambda _: ""


def base_path(location: str | Path, revision: str | None = None) -> Path:
    """Return the local file or folder of a base.

    Where ``HF_HUB_OFFLINE`` is set the Hub is not asked, and what an earlier download left in its
    cache will do.

    Of a model on the Hub comes what a merge reads: the weights in safetensors, once, with their
    index, and all files that are not weights, such as configuration and tokenizer.

    Raises
    ------
    CheckpointError
        If there is none and it cannot be downloaded.
    """
    return find(location, revision, _MODEL)


def is_id(location: str) -> bool:
    """Tell whether something that is not here could be an id on the Hub, with a revision or not."""
    return _as_id(location) is not None


def repository(location: str) -> str:
    """Return a Hub id without its revision; anything else unchanged."""
    named = _as_id(location)
    return location if named is None else named["name"]


def settled(location: str | Path) -> str | Path:
    """Return a path from the root, which no change of the current folder moves; a Hub id as is."""
    named = _as_id(location) if isinstance(location, str) else None
    if named is not None and not os.path.lexists(named["owner"]):
        return location
    return Path(location).absolute()


def _as_id(location: str) -> re.Match[str] | None:
    return re.fullmatch(_HUB_ID, location, re.ASCII)


def find(location: str | Path, revision: str | None, kind: Kind) -> Path:
    """Return the local folder, or file, of something of a kind.

    Raises
    ------
    NolaEdgeError
        Of the kind's own type, if it is not here and cannot be downloaded.
    ArgumentError
        If two revisions are named, or the location is not a path.
    """
    path = arguments.path(kind.argument, location)
    if is_here(path):
        return path
    named = _as_id(location) if isinstance(location, str) else None
    if named is None or ".." in (named["revision"] or ""):
        raise kind.error("does not exist", file=location)
    if os.path.lexists(named["owner"]):
        raise kind.error(
            f"does not exist, but {printable(named['owner'])} does, so this is not {kind.what} on "
            "the Hugging Face Hub; correct the path",
            file=location,
        )
    if revision is not None and named["revision"] not in (None, revision):
        raise ArgumentError(
            f"is {printable(revision)!r}, but {printable(location)} has another",
            field="revision",
            value=revision,
        )
    fetch = _cached if _is_offline() else _download
    return fetch(named["name"], revision or named["revision"], kind)


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in _YES
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _cached(name: str, revision: str | None, kind: Kind) -> Path:
    """Return the folder of an earlier download; nothing but the disk is asked."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, kind.config, revision=revision)
    except (ImportError, ValueError):
        found = None
    shown = _shown(name, revision)
    if not isinstance(found, str):
        raise kind.error(
            "does not exist, nor is it in the cache of the Hugging Face Hub, which is not asked "
            "while HF_HUB_OFFLINE is set",
            file=shown,
        )
    folder = Path(found).parent
    _warn(
        "%s: not found here, taken from the cache of the Hugging Face Hub; only files downloaded "
        "earlier are used%s",
        shown,
        kind.cached(folder),
    )
    return folder


def _warn(message: str, *values: object) -> None:
    from logging import getLogger

    getLogger("nola_edge").warning(message, *values)


def _without_tokenizer(folder: Path) -> str:
    if any((folder / name).is_file() for name in _TOKENIZERS):
        return ""
    return ", without a tokenizer file"


def _download(name: str, revision: str | None, kind: Kind) -> Path:
    shown = _shown(name, revision)
    try:
        import huggingface_hub  # noqa: F401 - whether it is there
    except ImportError:
        raise kind.error(
            "does not exist here; to download it from the Hub: pip install 'nola-edge[hub]'",
            file=shown,
        ) from None
    _warn("%s: not found here, looked up on the Hugging Face Hub", shown)
    try:
        return Path(kind.download(name, revision))
    except NolaEdgeError as error:
        error.file = shown
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise kind.error(
            f"does not exist here and cannot be downloaded from the Hub: {printable(reason[0])}",
            file=shown,
        ) from None


def _shown(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{printable(revision)}"


def _download_model(name: str, revision: str | None) -> str:
    """Download the files that say which others are needed, then those."""
    from huggingface_hub import HfApi

    from nola_edge.files.folder import needed_files, weights_among

    names = HfApi().list_repo_files(name, revision=revision)
    weights = weights_among(names)
    if weights is None:
        raise CheckpointError(_no_weights(names))
    first = snapshot(name, revision, [n for n in names if n in (weights, *_TELLING)])
    folder = snapshot(name, revision, needed_files(names, weights, Path(first)))
    if folder != first:
        raise CheckpointError("changed on the Hub while it was downloaded; run again")
    return folder


def _no_weights(names: Sequence[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return (
            f"has no safetensors weights, but {printable(gguf[0])}; download that file, and give "
            "its path"
        )
    return "has no safetensors weights, or several without a name that says which to use"


def snapshot(name: str, revision: str | None, files: Collection[str]) -> str:
    """Download files of a repository, those that it has, and return their folder."""
    from glob import escape

    from huggingface_hub import snapshot_download

    return str(snapshot_download(name, revision=revision, allow_patterns=list(map(escape, files))))


#: Say which files belong to a model.
_TELLING = ("modules.json", "config.json")
_MODEL = Kind(
    "a model", "base", CheckpointError, "config.json", _download_model, _without_tokenizer
)
