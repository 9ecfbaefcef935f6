"""What methods share whose factors stay in the file of a PEFT folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.tensor_parts import check_owners
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nola_edge.adapters.factor_file import FactorFile
    from nola_edge.adapters.tensor_parts import TensorPart

#: What is held for a module.
ModuleT = TypeVar("ModuleT")


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """Fields that every such method has in its ``adapter_config.json``.

    Attributes
    ----------
    fan_in_fan_out : bool
        Whether the weights of layers are stored as (in, out), as GPT-2's Conv1D does.
    bias : str
        ``"none"``, ``"all"`` or the method's own word: whether bias tensors are in the file.
    modules_to_save : tuple of str
        Modules whose tensors are in the file whole.
    tensors : dict
        Module, or name of a whole tensor -> :class:`TensorPart`, where names do not say it.
    bookkeeping : dict
        Known fields without influence on the weights, kept as they are.
    """

    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    tensors: dict[str, TensorPart] = field(default_factory=dict)
    bookkeeping: dict[str, Any] = field(default_factory=dict)


class StoredAdapter(LowRankAdapter, Generic[ModuleT]):
    """An adapter that keeps its file open and reads factors as they are merged.

    Attributes
    ----------
    config : StoredConfig
    modules : mapping
        Module name -> what is held for it, in the order of the file.
    whole_tensors : TensorMapping
        Tensor name -> array, for ``modules_to_save`` and biases.
    path : Path
        Where it was loaded from.
    """

    config: StoredConfig
    modules: Mapping[str, ModuleT]
    path: Path

    def find(self, module: str) -> ModuleT:
        """Return what is held for a module; see :meth:`LowRankAdapter.find`."""
        found: ModuleT = super().find(module)
        return found

    def take_whole_tensors(self, tensors: FactorFile, rest: Mapping[str, str]) -> None:
        """Take whole tensors of what belongs to no module, and refuse the rest.

        Parameters
        ----------
        tensors : FactorFile
        rest : mapping
            Stored name -> the same without PEFT's prefix.

        Raises
        ------
        NolaEdgeError
            If a tensor is not announced by the configuration, or not what it must be.
        """
        rest = tensors.without_frozen(rest, self.modules, self.accepts)
        self.whole_tensors = TensorMapping(tensors.whole_tensors(rest))
        check_owners(self.config.tensors, self.modules, self.whole_tensors, tensors.file.path)

    def scaling_of(self, module: str) -> float:
        """Return s of a module, in double: 1 where a method has no scaling."""
        self.find(module)
        return 1.0

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights of layers are stored as (in, out), as GPT-2's Conv1D does."""
        return self.config.fan_in_fan_out

    @property
    def tensors(self) -> Mapping[str, TensorPart]:
        """Return which stored tensors its modules are, where their own names do not say it."""
        return self.config.tensors

    @property
    def bias(self) -> str:
        """Return ``"none"``, or which biases were trained."""
        return self.config.bias

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors it has whole."""
        return self.config.modules_to_save

    @property
    def bookkeeping(self) -> Mapping[str, Any]:
        """Return fields that say how it was trained or found."""
        return self.config.bookkeeping

    @property
    def open_files(self) -> int:
        """Return how many files it keeps open."""
        return 1
