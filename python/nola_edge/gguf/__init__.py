"""GGUF: read and check files, merge into them and verify that."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nola_edge.gguf.expect import expect_gguf
    from nola_edge.gguf.merge import GgufReport, merge_gguf
    from nola_edge.gguf.verify import verify_gguf

__all__ = ["GgufReport", "expect_gguf", "merge_gguf", "verify_gguf"]

# Whoever only asks what kind of file something is need not import how it is merged.
_LAZY = {
    "GgufReport": "nola_edge.gguf.merge",
    "expect_gguf": "nola_edge.gguf.expect",
    "merge_gguf": "nola_edge.gguf.merge",
    "verify_gguf": "nola_edge.gguf.verify",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
