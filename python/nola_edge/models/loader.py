"""Merge weights that a loader has mapped out of their files into memory of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nola_edge.files.tensor_info import TensorInfo
from nola_edge.merge.merged import Merged
from nola_edge.merge.result import filling
from nola_edge.models.mapped_memory import MappedFiles, byte_view
from nola_edge.torch.addends import MERGEABLE
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from nola_edge.merge.low_rank import Term


class MergesFromFiles:
    """Collects merges of mapped weights and does them together.

    Together, because threads that merge and a loader that runs Python would keep waiting for each
    other: for the interpreter, which only one of them can hold.

    Parameters
    ----------
    paths : iterable of path
        The files that the loader reads.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._files = MappedFiles(paths)
        self._waiting: list[tuple[Merged, torch.Tensor]] = []

    def add(self, name: str, tensor: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor | None:
        """Plan the merge of a weight.

        Parameters
        ----------
        name : str
            For errors.
        tensor : torch.Tensor
            As the loader gives it; left as it is.
        terms : sequence of Term
            What is merged into it.

        Returns
        -------
        torch.Tensor or None
            A tensor that holds the merged weight after :meth:`run`; None if `tensor` is not mapped
            from one of the files.
        """
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
        if hasattr(tensor, "device_mesh"):
            return None  # its memory is a part of it
        if tensor.dtype not in MERGEABLE or (found := self._files.find(tensor)) is None:
            return None
        file, start = found
        shape = tuple(tensor.shape)
        info = TensorInfo(name, MERGEABLE[tensor.dtype], shape, start, start + tensor.nbytes)
        merged = torch.empty(shape, dtype=tensor.dtype, device="cpu")
        self._waiting.append((Merged(file, info, tuple(terms)), merged))
        return merged

    def run(self) -> None:
        """Do what has been planned since the last time, on all of torch's threads.

        Raises
        ------
        NolaEdgeError
            If a merged weight is not finite, or a file cannot be read or has changed.
        """
        waiting, self._waiting = self._waiting, []
        threads = torch.get_num_threads()
        buffers = Buffers()
        with Workers(threads) as workers:
            workers.each(
                job
                for result, merged in waiting
                for job in filling(result, byte_view(merged), buffers, threads)
            )
        self._files.check_unchanged()

    def close(self) -> None:
        """Close the files."""
        self._files.close()
