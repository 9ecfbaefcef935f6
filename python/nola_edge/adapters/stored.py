"""What methods share whose factors stay in the file of a PEFT folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from nola_edge.adapters.base import LowRankAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.adapters.tensor_parts import TensorPart


class StoredConfig(Protocol):
    """Fields that every such method has in its ``adapter_config.json``."""

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights of layers are stored as (in, out)."""

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors are in the file whole."""

    @property
    def tensors(self) -> Mapping[str, TensorPart]:
        """Return which stored tensors modules are, where their own names do not say it."""

    @property
    def bookkeeping(self) -> Mapping[str, Any]:
        """Return known fields without influence on the weights."""


class StoredAdapter(LowRankAdapter):
    """An adapter that keeps its file open and reads factors as they are merged.

    Attributes
    ----------
    config : StoredConfig
    """

    config: StoredConfig

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights of layers are stored as (in, out), as GPT-2's Conv1D does."""
        return self.config.fan_in_fan_out

    @property
    def tensors(self) -> Mapping[str, TensorPart]:
        """Return which stored tensors its modules are, where their own names do not say it."""
        return self.config.tensors

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
