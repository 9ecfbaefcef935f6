"""What a merge asks of an adapter, whatever method trained it: ``W' = W + s B A`` for some modules.

A new method is one subclass, and an entry in :mod:`nola_edge.adapters.methods`; nothing that
merges, writes, verifies or exports knows which method an adapter is of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from nola_edge import arguments
from nola_edge.adapters.whole_tensors import is_saved
from nola_edge.errors import UnknownModuleError, printable

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.adapters.expected import ExpectedResult
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.tensors import Tensor, TensorMapping
    from nola_edge.ops import Range

    Factor = Literal["A", "B"]


def with_rslora_mistaken(scaling: float, rank: int, use_rslora: bool) -> float:
    """Return ``alpha / r`` of a scaling ``alpha / sqrt(r)``, with rsLoRA, or the reverse."""
    root = math.sqrt(rank)
    return scaling / root if use_rslora else scaling * root


class LowRankAdapter(ABC):
    """An adapter that adds a product of two thin factors to the weight of each of its modules.

    Attributes
    ----------
    path : Path or None
        Where it was loaded from.
    modules : mapping
        Keyed by the adapter's own names of its modules, at least one.
    whole_tensors : TensorMapping
        Tensor name -> array that takes a tensor's place: ``modules_to_save`` and biases.
    expected : tuple of ExpectedResult
        What merging it must give, where its publisher recorded that.
    """

    path: Path | None
    expected: tuple[ExpectedResult, ...] = ()
    modules: Mapping[str, Any]
    whole_tensors: TensorMapping

    @property
    def method(self) -> str:
        """Return what people call the method; by default the class's name without "Adapter"."""
        return type(self).__name__.removesuffix("Adapter")

    def find(self, module: str) -> Any:
        """Return what is held for a module.

        Raises
        ------
        UnknownModuleError
            If the adapter has no such module; it is a KeyError too.
        """
        found = self.modules.get(module) if isinstance(module, str) else None
        if found is None:
            arguments.text("module", module)
            raise UnknownModuleError(
                f"{printable(module)} is not one of the adapter's {len(self.modules)} modules; its "
                "`modules` lists them",
                field="module",
                value=module,
            )
        return found

    @property
    def needs_base(self) -> bool:
        """Whether only a base says which modules it has (:meth:`for_base`)."""
        return False

    def for_base(self, shapes: Mapping[str, tuple[int, ...]], base: Path) -> LowRankAdapter:
        """Return the adapter with the modules that it has in a base, where only that says them.

        Parameters
        ----------
        shapes : mapping
            Tensor of the base -> shape.
        base : Path
            Named in errors.

        Raises
        ------
        MismatchError
            If the base does not say them.
        """
        return self

    @abstractmethod
    def rank(self, module: str) -> int:
        """Return r of a module."""

    @property
    def tensors(self) -> Mapping[str, TensorPart]:
        """Return which stored tensors its modules are, where their own names do not say it."""
        return {}

    @abstractmethod
    def scaling_of(self, module: str) -> float:
        """Return s of a module, in double."""

    def mistaken_scaling(self, module: str) -> float | None:
        """Return s of a module where rsLoRA is mistaken, in double; None if the method has none.

        That is ``alpha / r`` instead of ``alpha / sqrt(r)``, or the reverse: programs make this
        mistake, and a verification names it.
        """
        return None

    @property
    def other_layout(self) -> LowRankAdapter | None:
        """Return the adapter with its factors taken to be laid out in the other way of two.

        None if there is only one. As with :meth:`mistaken_scaling`, a verification names it.
        """
        return None

    @abstractmethod
    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: Range | None = None,
        num_threads: int | None = None,
        *,
        rows: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return A, (r, in_features), or the columns, or rows, (start, stop) of it: float32."""

    @abstractmethod
    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: Range | None = None,
        num_threads: int | None = None,
        *,
        cols: Range | None = None,
    ) -> NDArray[np.float32]:
        """Return B, (out_features, r), or the rows, or columns, (start, stop) of it: float32."""

    @property
    @abstractmethod
    def fan_in_fan_out(self) -> bool:
        """Whether the weights of layers are stored as (in, out), as GPT-2's Conv1D does."""

    def is_embedding(self, module: str) -> bool:
        """Tell whether a module is an embedding, whose weight is (tokens, features) = (in, out)."""
        return False

    def transposed(self, module: str) -> bool:
        """Tell whether the weight of a module is stored as (in, out) in a checkpoint."""
        return self.fan_in_fan_out or self.is_embedding(module)

    def shape(self, module: str) -> tuple[int, int] | None:
        """Return the only (out_features, in_features) that fit; None if several do."""
        return None

    def accepts(self, module: str, out_features: int, in_features: int) -> bool:
        """Tell whether the factors fit a module of this shape."""
        return self.shape(module) in (None, (out_features, in_features))

    @property
    def base_fingerprint(self) -> str | None:
        """Return the fingerprint of the base that it was made for, if it records one."""
        return None

    @property
    def shapes_fingerprint(self) -> str | None:
        """Return the fingerprint of its modules' shapes, if it records one."""
        return None

    def magnitude(self, module: str) -> Tensor | None:
        """Return DoRA's norms of the merged weights, (out_features,); None where there are none."""
        return None

    @property
    def added_biases(self) -> Mapping[str, Tensor]:
        """Return module -> (out_features,) that is added to the bias, times s as B A is."""
        return {}

    @property
    def bias(self) -> str:
        """Return whether it has trained biases: ``"none"``, ``"all"`` or the method's own word."""
        return "none"

    @property
    @abstractmethod
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors it has whole."""

    @property
    def unplaced(self) -> Mapping[str, Tensor]:
        """Return trained tensors that no merge can use, by name: ``export lora`` writes them."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what to know about a merge of it, one line each."""
        return ()

    def may_add(self, name: str) -> bool:
        """Tell whether a whole tensor may be one that the base does not have."""
        return is_saved(name, self.modules_to_save)

    @property
    def bookkeeping(self) -> Mapping[str, Any]:
        """Return fields that say how it was trained or found, by PEFT's names."""
        return {}

    def origin(self, module: str, factor: Factor) -> Hashable | None:
        """Return all that a factor is computed from; None if it is as quickly read as kept."""
        return None

    def work(self, factor: Factor) -> int:
        """Return roughly the multiply-adds that an element of a factor takes."""
        return 1

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory."""
        return sum(tensor.held for tensor in self.whole_tensors.tensors.values())

    @property
    def open_files(self) -> int:
        """Return how many files it keeps open."""
        return int(any(not tensor.held for tensor in self.whole_tensors.tensors.values()))
