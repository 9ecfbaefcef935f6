"""What files of a model call its tensors, by an adapter's record and a caller's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.renames import Renames
from nola_edge.adapters.tensor_parts import BIAS, WEIGHT, TensorPart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class StoredNames:
    """What files of the model that an adapter was trained on call its tensors.

    Parameters
    ----------
    parts : mapping
        Module, or name of another tensor -> part of a stored tensor, where names do not say it.
    renames : Renames, optional
        What the caller says, which goes before.
    """

    def __init__(self, parts: Mapping[str, TensorPart], renames: Renames | None = None) -> None:
        self._parts = parts
        self._renames = renames or Renames()

    @property
    def has_record(self) -> bool:
        """Tell whether there are parts that names do not say."""
        return bool(self._parts)

    def without_record(self) -> StoredNames:
        """Return the names that files have which transformers saved as the model has them."""
        return StoredNames({}, self._renames)

    @property
    def renames(self) -> Renames:
        """Return what the caller says."""
        return self._renames

    def with_renames(self, rules: Mapping[str, str]) -> StoredNames:
        """Return the names that these rules make, and no others."""
        return StoredNames(self._parts, Renames(rules))

    def module(self, module: str, tensors: Collection[str] = ()) -> TensorPart:
        """Return the part that is a module's weight, in a base that has these tensors."""
        renamed = self._renames.module(module, tensors)
        return renamed or self._parts.get(module) or TensorPart(module + WEIGHT)

    def tensor(self, name: str) -> TensorPart:
        """Return the part that is another tensor: a bias, or one that an adapter has whole."""
        known = self._renames.tensor(name) or self._parts.get(name)
        if known is None and name.endswith(BIAS):
            return self.module(name.removesuffix(BIAS)).bias
        return known or TensorPart(name)

    def keeps(self, name: str) -> bool:
        """Tell whether the caller says that a tensor keeps the name that an adapter has it by."""
        return self._renames.tensor(name) == TensorPart(name)


def namesake(stored: str, tensors: Collection[str]) -> str | None:
    """Return which of a base's tensors one that it lacks seems to be; None if none does.

    The name of one ends in that of the other: ``language_model.lm_head.weight`` and
    ``lm_head.weight``.
    """
    if stored in tensors:
        return None
    for tensor in tensors:
        shorter, longer = sorted((stored, tensor), key=len)
        if "." in shorter and longer.endswith(f".{shorter}"):
            return tensor
    return None
