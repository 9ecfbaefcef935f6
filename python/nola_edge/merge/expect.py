"""Find what merging an adapter must give, to be published with it; the result is never written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.expected import FOLDER, ONE_FILE, ExpectedResult, check_name
from nola_edge.errors import ArgumentError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.content_hash import check_listable, hash_file, hash_of_list
from nola_edge.files.hub import base_path, settled
from nola_edge.merge.expectation import base_fingerprint_of
from nola_edge.merge.layout import companion_contents, output_files
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.weight_files import hash_weights
from nola_edge.threads import check_threads, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from nola_edge.adapters.base import LowRankAdapter

#: One thread hashes at a time; more than a few others would only wait for it.
_MAX_THREADS = 4


def expect_checkpoint(
    base: str | Path,
    adapter: Any,
    *,
    name: str | None = None,
    num_threads: int | None = None,
    check_base: bool = True,
    progress: Callable[[int], None] | None = None,
) -> ExpectedResult:
    """Return what :func:`nola_edge.merge_checkpoint` must give for a base and one adapter.

    The result is hashed as it is made, and written nowhere. Give it to
    :meth:`nola_edge.Adapter.pack`, so that every merge of the packed adapter is compared with it.

    Parameters
    ----------
    base : path or str
        As for :func:`nola_edge.merge_checkpoint`.
    adapter : Adapter or path
    name : str, optional
        What to call the base; default: the name of its file or folder, or its Hub id.
    num_threads : int, optional
        Default: the processors this process may use, at most four.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    progress : callable, optional
        Called, from any thread, with the number of bytes made since the last call.

    Returns
    -------
    ExpectedResult

    Raises
    ------
    NolaEdgeError
        As for :func:`nola_edge.merge_checkpoint`.
    """
    threads = hashing_threads(num_threads)
    name = name_of_base(base, name)
    advance = progress or (lambda _: None)
    adapters = one_adapter(adapter)
    with Checkpoint.open(base_path(base)) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        fingerprint = base_fingerprint_of(plan)
        files = _hash_files(plan, threads, advance)
        checkpoint.check_unchanged()
        if not checkpoint.is_folder:
            (sha256,) = files.values()
            return ExpectedResult(name, ONE_FILE, fingerprint, sha256)
    return ExpectedResult(name, FOLDER, fingerprint, hash_of_list(files), files)


def hashing_threads(num_threads: int | None) -> int:
    """Return how many threads make what is hashed."""
    check_threads(num_threads)
    return min(_MAX_THREADS, thread_count(num_threads))


def name_of_base(base: str | Path, name: str | None) -> str:
    """Return what a base is called: as the caller says, or by its file, folder or Hub id.

    Raises
    ------
    ArgumentError
        If that is not printable, or too long.
    """
    place = settled(arguments.path("base", base) if isinstance(base, Path) else base)
    found = place if isinstance(place, str) else Path(os.path.normpath(place)).name
    return check_name(found if name is None else arguments.text("name", name))


def one_adapter(adapter: Any) -> tuple[tuple[LowRankAdapter, float], ...]:
    """Return the one adapter that was given, with weight 1.

    Raises
    ------
    ArgumentError
        If there are several, or it has another weight.
    """
    adapters = load_adapters(adapter)
    if len(adapters) > 1 or adapters[0][1] != 1:
        raise ArgumentError(
            "must be one adapter, with weight 1: results are expected of nothing else",
            field="adapter",
        )
    return adapters


def _hash_files(
    plan: MergePlan, num_threads: int, progress: Callable[[int], None]
) -> dict[str, str]:
    """Return the SHA-256 of every file of a result by its path, in order."""
    base = plan.base
    files = output_files(plan)
    contents = companion_contents(plan, base.companions(), files) if base.is_folder else {}
    for path in contents:
        check_listable(str(path), base.path)
    found = {file.name: hash_weights(plan, file, num_threads, progress) for file in files}
    for path, content in contents.items():
        if isinstance(content, bytes):
            found[str(path)] = hashlib.sha256(content).hexdigest()
        else:
            found[str(path)] = hash_file(content, progress)
    return dict(sorted(found.items()))
