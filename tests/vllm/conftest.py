"""Folders of adapters, and a cache for them."""

from __future__ import annotations

import pytest

from nola_edge.vllm.cache import LoraCache
from tests.conftest import tiny_adapter
from tests.vllm.checks import PLENTY


@pytest.fixture
def adapters(tiny, tmp_path):
    """A folder with the adapters a, b, c (folders) and d.nola (quantised and packed)."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    for number, name in enumerate("abc"):
        tiny_adapter(seed=number, r=16 + number).save(folder / name)
    tiny_adapter(seed=9, r=16).quantize(8).pack(folder / "d.nola")
    return folder


@pytest.fixture
def make_cache(adapters, tmp_path):
    """A function that opens the cache, as another process would; all are closed at the end."""
    made = []

    def make(max_bytes=PLENTY, **options):
        made.append(LoraCache(adapters, tmp_path / "cache", max_bytes=max_bytes, **options))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
