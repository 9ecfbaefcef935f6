"""nola-edge: low-rank adapters merged into real weights, the same bits on every machine.

>>> import nola_edge as ne
>>> ne.merge_checkpoint("base-model", "adapter", "merged-model")  # doctest: +SKIP
"""

# Nothing is imported here: that takes time, in which Ctrl-C would end the command line in a
# traceback. Nor are signals handled here: a program that imports the package keeps its own.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nola_edge._core import __version__
    from nola_edge.adapters import Adapter, load_adapter
    from nola_edge.errors import NolaEdgeError
    from nola_edge.export.lora import export_lora
    from nola_edge.files.content_hash import content_hash
    from nola_edge.merge.expect import expect_checkpoint
    from nola_edge.merge.many.each import merge_each
    from nola_edge.merge.open import open_merged
    from nola_edge.merge.switch import ArraySwitch
    from nola_edge.merge.verify import verify_checkpoint
    from nola_edge.merge.write import merge_checkpoint
    from nola_edge.ops import build_info, expand, merge_, project, stream_id

__all__ = [
    "Adapter",
    "ArraySwitch",
    "NolaEdgeError",
    "__version__",
    "build_info",
    "content_hash",
    "expand",
    "expect_checkpoint",
    "export_lora",
    "load_adapter",
    "merge_",
    "merge_checkpoint",
    "merge_each",
    "open_merged",
    "project",
    "stream_id",
    "verify_checkpoint",
]

# Imported at first use: a program that only expands or merges arrays should not pay for what reads
# and writes files.
_LAZY = {
    "Adapter": "nola_edge.adapters",
    "ArraySwitch": "nola_edge.merge.switch",
    "NolaEdgeError": "nola_edge.errors",
    "__version__": "nola_edge._core",
    "content_hash": "nola_edge.files.content_hash",
    "expect_checkpoint": "nola_edge.merge.expect",
    "export_lora": "nola_edge.export.lora",
    "load_adapter": "nola_edge.adapters",
    "merge_checkpoint": "nola_edge.merge.write",
    "merge_each": "nola_edge.merge.many.each",
    "open_merged": "nola_edge.merge.open",
    "verify_checkpoint": "nola_edge.merge.verify",
    **dict.fromkeys(("build_info", "expand", "merge_", "project", "stream_id"), "nola_edge.ops"),
}


def __getattr__(name: str) -> "Any":
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
