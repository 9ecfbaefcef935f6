"""Merge at load: a read-only mapping from tensor names to arrays, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments
from nola_edge.adapters.renames import Renames
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import printable
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.merge.merged import Merged
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.result import FromFile, Stored, fill
from nola_edge.threads import check_threads
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from nola_edge.merge.result import Whole
    from nola_edge.merge.stacks import MergedStack


class MergedCheckpoint(Mapping[str, "NDArray[Any]"]):
    """The tensors of a base checkpoint with adapters merged in, computed on access.

    An unchanged tensor is a read-only view of the mapped file and shares its memory with the page
    cache; a merged one is a new, writable array on each access. Usable from several threads. Close
    it, or use it as a context manager; views keep the mapping alive.

    Attributes
    ----------
    plan : MergePlan
        Which tensors are merged, replaced and added.
    """

    def __init__(self, plan: MergePlan, num_threads: int | None = None) -> None:
        self.plan = plan
        self._num_threads = num_threads

    def __repr__(self) -> str:
        base, merged = self.plan.base.path, len(self.plan.merged)
        return f"<MergedCheckpoint {printable(base)}: {len(self)} tensors, {merged} merged>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        result = self.plan.result(name)
        if isinstance(result, Stored):
            file, _ = self.plan.tensor(name)
            file.check_unchanged()
            return file.array(name)
        made = self._made(result)
        if isinstance(result, FromFile):
            self.plan.tensor(name)[0].check_unchanged()
        return made

    def read(self, name: str) -> NDArray[Any]:
        """Return a new, writable array of a tensor, even of an unchanged one; nothing is mapped.

        Raises
        ------
        ChangedError
            If the file changed, or has become shorter, which would end a process that reads a
            mapping.
        """
        return self._made(self.plan.result(name))

    def __contains__(self, name: object) -> bool:
        return name in self.plan.base.tensors or name in self.plan.added

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.names)

    def __len__(self) -> int:
        return len(self.plan.names)

    def _made(self, result: Stored | Whole | Merged | MergedStack) -> NDArray[Any]:
        array: NDArray[Any] = np.empty(result.shape, dtype=numpy_dtype(result.dtype))
        with Workers(self._num_threads) as workers:
            fill(result, array.reshape(-1).view(np.uint8).data, workers, self._num_threads)
        return array

    def close(self) -> None:
        """Close the base's files; arrays already returned stay valid."""
        self.plan.base.close()

    def __enter__(self) -> MergedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_merged(
    base: str | Path,
    adapter: Any,
    *,
    num_threads: int | None = None,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
) -> MergedCheckpoint:
    """Open a checkpoint as if the adapters had been merged into it.

    Parameters
    ----------
    base : path or str
        A safetensors file, a Hugging Face folder, or a Hub id as for :func:`merge_checkpoint`.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
    num_threads : int, optional
        Default: the processors this process may use.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    rename
        See :func:`merge_checkpoint`.

    Returns
    -------
    MergedCheckpoint
        Read-only mapping name -> array, in the order of the files.

    Raises
    ------
    NolaEdgeError
        If a file is not what it claims, or adapter and base do not fit. Everything is checked here,
        except whether merged weights are finite and the base is unchanged, which is checked on
        access.
    """
    check_threads(num_threads)
    arguments.path("base", base)
    renames = Renames(rename)
    adapters = load_adapters(adapter)
    checkpoint = Checkpoint.open(base_path(base))
    try:
        plan = plan_merge(checkpoint, adapters, check_base=check_base, renames=renames)
        renames.check_used()
        return MergedCheckpoint(plan, num_threads)
    except BaseException:
        checkpoint.close()
        raise
