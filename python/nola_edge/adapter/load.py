"""Load an adapter of any method that is known here, by the ``peft_type`` that it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapter.adapter import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.adapter.low_rank import LowRankAdapter


def load_adapter(path: str | Path, *, revision: str | None = None) -> LowRankAdapter:
    """Load a folder or a packed file; `path` and `revision` as for :meth:`Adapter.load`."""
    return Adapter.load(path, revision=revision)
