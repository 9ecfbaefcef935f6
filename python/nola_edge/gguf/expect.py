"""Find what merging an adapter into a GGUF file must give; the result is never written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.expected import GGUF, ExpectedResult
from nola_edge.files.gguf import GgufFile
from nola_edge.files.sinks import HashSink
from nola_edge.gguf.layout import Layout
from nola_edge.gguf.merge import write_parts
from nola_edge.gguf.plan import base_fingerprint_of, plan_gguf
from nola_edge.merge.expect import hashing_threads, name_of_base, one_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def expect_gguf(
    base: str | Path,
    adapter: Any,
    *,
    name: str | None = None,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExpectedResult:
    """Return what :func:`merge_gguf` must give for a base and one adapter, with default options.

    As :func:`nola_edge.expect_checkpoint` for a checkpoint.

    Parameters
    ----------
    base : path
        A GGUF file.
    adapter : Adapter or path
    name : str, optional
        What to call the base; default: the name of its file.
    num_threads : int, optional
        Default: the processors this process may use, at most four.
    progress : callable, optional
        Called, from any thread, with the number of bytes made since the last call.

    Raises
    ------
    NolaEdgeError
        As for :func:`merge_gguf`.
    """
    threads = hashing_threads(num_threads)
    base = arguments.path("base", base)
    name = name_of_base(base, name)
    adapters = one_adapter(adapter)
    with GgufFile.open(base) as file:
        plan = plan_gguf(file, adapters)
        sink = HashSink()
        write_parts(plan, Layout(file, plan.kinds), sink, threads, progress or (lambda _: None))
        file.check_unchanged()
        return ExpectedResult(name, GGUF, base_fingerprint_of(plan), sink.hexdigest())
