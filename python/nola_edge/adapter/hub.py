"""Find an adapter's folder: a local path always, a Hub id where huggingface_hub is installed."""

from __future__ import annotations

import re
from pathlib import Path

from nola_edge.errors import AdapterError, printable

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def resolve(location: str | Path, revision: str | None = None) -> Path:
    """Return the local folder, or packed file, of an adapter.

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
    path = Path(location)
    if path.exists():
        return path
    if not (isinstance(location, str) and _HUB_ID.match(location)):
        raise AdapterError("does not exist", file=location)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise AdapterError(
            "does not exist here; to download it from the Hub: pip install huggingface_hub",
            file=location,
        ) from None
    try:
        return Path(snapshot_download(location, revision=revision, allow_patterns=_FILES))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterError(
            f"does not exist here and cannot be had from the Hub: {printable(reason[0])}",
            file=location,
        ) from None
