"""Find an adapter's folder: a local path always, a Hub id where huggingface_hub is installed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from nola_edge import arguments
from nola_edge.errors import AdapterError, printable

# Without handlers of the caller's, Python prints a warning as one line on stderr.
LOGGER = logging.getLogger("nola_edge")

_HUB_ID = re.compile(r"(?P<owner>\w[\w.-]*)/\w[\w.-]*", re.ASCII)
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_YES = ("1", "ON", "YES", "TRUE")


def resolve(location: str | Path, revision: str | None = None) -> Path:
    """Return the local folder, or packed file, of an adapter.

    A path that does not exist is looked up on the Hub, with a line that says so, only if it cannot
    be a mistyped one: nothing of it is here. Where ``HF_HUB_OFFLINE`` is set the Hub is not asked,
    and what an earlier download left in its cache will do.

    Parameters
    ----------
    location : path or str
        A folder, a packed file, or ``owner/name`` on the Hugging Face Hub. What is here wins.
    revision : str, optional
        Branch, tag or commit on the Hub.

    Raises
    ------
    AdapterError
        If there is no such folder and it cannot be downloaded.
    """
    path = arguments.path("path", location)
    if path.exists():
        return path
    named = _HUB_ID.fullmatch(location) if isinstance(location, str) else None
    if named is None:
        raise AdapterError("does not exist", file=location)
    if os.path.lexists(named["owner"]):
        raise AdapterError(
            f"does not exist, but {printable(named['owner'])} does, so this is not an adapter "
            "on the Hugging Face Hub; correct the path",
            file=location,
        )
    find = _cached if _is_offline() else _download
    return find(named[0], revision)


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in _YES
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _cached(name: str, revision: str | None) -> Path:
    """Return the folder of an earlier download; nothing but the disk is asked."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, _FILES[0], revision=revision)
    except (ImportError, ValueError):
        found = None
    if not isinstance(found, str):
        raise AdapterError(
            "does not exist, and is not in the cache of the Hugging Face Hub, which is not asked "
            "while HF_HUB_OFFLINE is set",
            file=name,
        )
    LOGGER.warning("%s: is not here, taken from the cache of the Hugging Face Hub", name)
    return Path(found).parent


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise AdapterError(
            "does not exist here; to download it from the Hub: pip install huggingface_hub",
            file=name,
        ) from None
    LOGGER.warning("%s: is not here, looked up on the Hugging Face Hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterError(
            f"does not exist here and cannot be had from the Hub: {printable(reason[0])}",
            file=name,
        ) from None
