"""Merging adapters into a layer's base weight, and putting the weight back."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from nola_edge.errors import NotFiniteError
from nola_edge.torch.addends import NolaAddend
from nola_edge.torch.merge import merge_factors_


class MergingLayer(nn.Module, BaseTunerLayer):
    """A layer whose adapters are merged together, with one rounding, and taken out exactly."""

    nola_alpha: nn.ParameterDict
    quantization_backend: Any
    transposed: bool

    def __init__(self) -> None:
        super().__init__()
        # What the base layer held before a merge: a weight, or a quantised parameter itself.
        self._unmerged: Any = None
        self.merged_adapters: list[str] = []

    def addends(self, adapter: str) -> list[NolaAddend]:
        """Return what an adapter adds to the weight."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into the base weight, all of them together, rounded once.

        The weight before the first merge is kept until :meth:`unmerge`, which restores it exactly.

        Parameters
        ----------
        safe_merge : bool
            Of no effect: a merge is always checked, and undone if it fails.
        adapter_names : list of str, optional
            Default: the active ones.

        Raises
        ------
        ValueError
            If a merged weight would be infinite or NaN; it is then as before.
        """
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self.nola_alpha
        ]
        if not names:
            return
        before = self._unmerged if self.merged else self._keep_weight()
        try:
            self._merge_into(before, [*self.merged_adapters, *names])
        except NotFiniteError:
            self._merge_into(before, self.merged_adapters)
            raise ValueError(
                "NaNs detected in the merged weights. "
                f"The adapter {', '.join(names)} seems to be broken"
            ) from None
        self._unmerged, self.merged_adapters = before, [*self.merged_adapters, *names]

    def _merge_into(self, before: Any, names: list[str]) -> None:
        """Put the kept weight back and merge adapters into it."""
        self._put_back(before)
        addends = [addend for name in names for addend in self.addends(name)]
        if not addends:
            return
        if self.quantization_backend is None:
            weight = cast(torch.Tensor, self.get_base_layer().weight).data
            merge_factors_(weight, addends, transposed=self.transposed)
        else:
            weight = self.get_base_weight().clone()
            merge_factors_(weight, addends, transposed=self.transposed)
            self.set_base_weight(weight)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weight back, exactly: it was kept, not computed back."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back(self._unmerged)
        self._unmerged = None
        self.merged_adapters = []

    def _keep_weight(self) -> Any:
        base: Any = self.get_base_layer()
        if self.quantization_backend is None:
            return base.weight.data.clone()
        # A merge replaces a quantised parameter, so keeping it is enough; bitsandbytes moves the
        # scales of an 8-bit one into the layer's state.
        return base.weight, copy.copy(getattr(base, "state", None))

    def _put_back(self, before: Any) -> None:
        base: Any = self.get_base_layer()
        if self.quantization_backend is None:
            base.weight.data.copy_(before)
            return
        base.weight, state = before
        if state is not None:
            base.state = copy.copy(state)  # the next merge resets what it finds in the layer
