"""What the tests of serving with vLLM have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from nola_edge.errors import NolaEdgeError
from nola_edge.vllm.cache import LoraCache
from tests.conftest import snapshot

#: More than all the tiny adapters take.
PLENTY = 10_000_000


def entries(cache: LoraCache) -> set[str]:
    """The names of everything in the cache's folder, temporaries included."""
    return {path.name for path in cache.directory.iterdir()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refused(folder: Path, call, message: str, error=NolaEdgeError) -> None:
    """The call is refused with one printable line, and nothing below the folder has changed."""
    before = snapshot(folder)
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).isprintable()
    assert snapshot(folder) == before
