"""Find an adapter by its path or by its id on the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.errors import AdapterError
from nola_edge.files.hub import Kind, find, snapshot

if TYPE_CHECKING:
    from pathlib import Path


def adapter_path(location: str | Path, revision: str | None = None) -> Path:
    """Return the local folder, or packed file, of an adapter.

    Where ``HF_HUB_OFFLINE`` is set the Hub is not asked, and what an earlier download left in its
    cache will do.

    Parameters
    ----------
    location : path or str
        A folder, a packed file, or ``owner/name`` on the Hugging Face Hub, with ``@revision`` if
        it is not the newest of ``main``. What is here wins.
    revision : str, optional
        Branch, tag or commit on the Hub.

    Raises
    ------
    AdapterError
        If there is no such folder and it cannot be downloaded.
    """
    return find(location, revision, _ADAPTER)


def _download(name: str, revision: str | None) -> str:
    return snapshot(name, revision, (CONFIG_NAME, WEIGHTS_NAME))


_ADAPTER = Kind("an adapter", "path", AdapterError, CONFIG_NAME, _download)
