"""Biases that adapters add to: ``b' = b + s d``, rounded once as a merged weight is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nola_edge import ops
from nola_edge.adapters.belongs import location
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import AdapterError, MismatchError, NotFiniteError, printable
from nola_edge.files.tensors import StoredTensor, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.merge.plan import MergePlan


class AddedBias(NamedTuple):
    """What one adapter adds to a bias.

    Attributes
    ----------
    values : Tensor
        (out_features,).
    scaling : float
        s times the weight of the adapter.
    """

    values: Tensor
    scaling: float


class ShiftedBias(Tensor):
    """The sum of a stored bias and what adapters add to it, in the bias's dtype.

    A bias is a matrix of one column, and what is added to it B A with A = 1: the operations are
    those of a merged weight (docs/design.md, *Merge*).
    """

    def __init__(self, stored: Tensor, added: tuple[AddedBias, ...]) -> None:
        self._stored = stored
        self._added = added
        self.dtype, self.shape, self.held = stored.dtype, stored.shape, stored.held

    def plus(self, added: AddedBias) -> ShiftedBias:
        """Return the sum with one more."""
        return ShiftedBias(self._stored, (*self._added, added))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`.

        Raises
        ------
        NotFiniteError
            If an element is infinite or NaN.
        """
        bias = self._stored.read(start, stop).copy().reshape(-1, 1)
        parts = [a.values.read(start, stop).astype(np.float32) for a in self._added]
        scaling = self._added[0].scaling
        if len(parts) > 1:
            scalings = [added.scaling for added in self._added]
            parts = [ops.scaled(part, s) for part, s in zip(parts, scalings, strict=True)]
            scaling = 1.0
        ones = np.ones((len(parts), 1), np.float32)
        ops.merge_(bias, np.stack(parts, axis=1), ones, scaling, num_threads=1)
        return bias.reshape(-1)


def add_bias(plan: MergePlan, adapter: LowRankAdapter, name: str, added: AddedBias) -> None:
    """Plan what an adapter adds to the bias of a module.

    Parameters
    ----------
    plan : MergePlan
    adapter : LowRankAdapter
    name : str
        The bias in the base.
    added : AddedBias

    Raises
    ------
    MismatchError
        If the base has no such bias, or of another shape or dtype.
    AdapterError
        If an adapter before it replaces the bias as a whole.
    NotFiniteError
        If the sum is not finite.
    """
    if name not in plan.base.tensors:
        raise MismatchError(
            f"is missing, but {printable(str(location(adapter)))} adds to it (lora_bias); train "
            "with lora_bias=False, or give the base's layer a bias of zeros",
            file=plan.base.path,
            field=name,
        )
    file, info = plan.tensor(name)
    if info.dtype not in MERGEABLE or info.shape != added.values.shape:
        raise MismatchError(
            f"is {info.dtype} {list(info.shape)}; {printable(str(location(adapter)))} adds "
            f"{list(added.values.shape)} to it, and it must be one of {', '.join(MERGEABLE)}",
            file=plan.base.path,
            field=name,
        )
    before = plan.replaced.get(name)
    if before is not None and not isinstance(before, ShiftedBias):
        raise AdapterError(
            "would be added to, but an earlier adapter replaces it as a whole",
            file=location(adapter),
            field=name,
        )
    if before is None:
        plan.replaced[name] = ShiftedBias(StoredTensor(file, name), (added,))
    else:
        plan.replaced[name] = before.plus(added)
    try:
        for _ in plan.replaced[name].blocks():
            pass
    except NotFiniteError:
        raise NotFiniteError(
            f"becomes infinite or NaN with what {printable(str(location(adapter)))} adds to it",
            file=plan.base.path,
            field=name,
        ) from None
