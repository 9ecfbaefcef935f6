"""DoRA in weights of a model in memory: window by window on the host, as in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nola_edge.files.tensor_info import TensorInfo
from nola_edge.merge.blocks import apply_update
from nola_edge.merge.low_rank import make_update, total_rank
from nola_edge.merge.windows import Window, strips, windows, work_bytes
from nola_edge.torch.addends import MERGEABLE
from nola_edge.torch.arrays import array_view
from nola_edge.torch.sharding import local_window
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from nola_edge.models.plan import ParameterMerge


@torch.no_grad()
def merge_outputs_(weight: torch.Tensor, merge: ParameterMerge) -> None:
    """Merge into a weight and scale its outputs, in place; of a DTensor, the part held here.

    Parameters
    ----------
    weight : Tensor or DTensor
        On any device: what is not on the CPU is worked on in a copy there. It holds whole outputs.
    merge : ParameterMerge
        For the whole weight.

    Raises
    ------
    NotFiniteError
        If a merged element is infinite or NaN; the weight may then hold it.
    """
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    host = local.cpu().contiguous()
    if host.numel():
        _merge(array_view(host), local_window(weight), merge, MERGEABLE[weight.dtype])
    if host.data_ptr() != local.data_ptr():
        local.copy_(host)


def _merge(
    part: NDArray[Any], held: tuple[tuple[int, int], ...], merge: ParameterMerge, dtype: str
) -> None:
    (top, _), (left, _) = held
    info = TensorInfo(merge.terms[0].module, dtype, part.shape, 0, part.nbytes)
    threads = torch.get_num_threads()
    with Workers(threads) as workers:
        for begin, end in strips(info, total_rank(merge.terms), merge.needs):
            cols = (left + begin, left + end)
            update = make_update(merge.terms, merge.shape, cols, threads)
            for window in windows(info, [update]):
                start, stop = window.rows
                need = work_bytes(info, update, window)
                rows = (top + start, top + stop)
                workers.submit(
                    apply_update, part[start:stop, begin:end], update, Window(rows, cols),
                    nbytes=need,
                )  # fmt: skip
