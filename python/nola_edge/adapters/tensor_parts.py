"""Which stored tensor a module's weight is, where the module's own name does not say so.

``tensors`` in ``adapter_config.json`` has it for every such module (docs/adapter-format.md):
the name of a tensor, or of one that holds more, with the module's outputs in it: ``NAME[0:64]``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_edge.errors import AdapterError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from nola_edge.ops import Range

WEIGHT = ".weight"
BIAS = ".bias"
_PART = r"(.+)\[(0|[1-9][0-9]{0,9}):([1-9][0-9]{0,9})\]"
_FORM = (
    'the name of a tensor or, where it holds several modules, of some of its outputs: "NAME[0:64]"'
)


class TensorPart(NamedTuple):
    """A stored tensor, or the lines of it that hold one module.

    Attributes
    ----------
    tensor : str
    lines : (start, stop) or None
        Rows, or columns where the weight is stored as (in, out); None: the whole tensor.
    """

    tensor: str
    lines: Range | None = None

    @classmethod
    def parse(cls, text: str) -> TensorPart | None:
        """Read what a configuration has; None if it is nothing of the kind."""
        if not text or not text.isprintable():
            return None
        if not text.endswith("]"):
            return cls(text)
        found = re.fullmatch(_PART, text)
        if found is None or int(found[2]) >= int(found[3]):
            return None
        return cls(found[1], (int(found[2]), int(found[3])))

    def __str__(self) -> str:
        if self.lines is None:
            return self.tensor
        return f"{self.tensor}[{self.lines[0]}:{self.lines[1]}]"

    def overlaps(self, other: TensorPart) -> bool:
        """Tell whether two parts of one tensor have a line in common."""
        if self.lines is None or other.lines is None:
            return True
        return max(self.lines[0], other.lines[0]) < min(self.lines[1], other.lines[1])

    @property
    def bias(self) -> TensorPart:
        """Return where the bias is that belongs to a weight."""
        if self == OTHERWISE:
            return self
        return TensorPart(self.tensor.removesuffix(WEIGHT) + BIAS, self.lines)


#: Of a weight or tensor that is in several, or in another order: null in a configuration.
OTHERWISE = TensorPart("")


def parse_parts(value: object, file: object) -> dict[str, TensorPart]:
    """Check the field ``tensors`` of a configuration.

    Raises
    ------
    AdapterError
        If it is not an object of texts, one of them does not name a part of a tensor, or two
        overlap.
    """

    def refusal(reason: str, found: object) -> AdapterError:
        return AdapterError(
            f"{reason}; save the adapter again", file=file, field="tensors", value=found
        )

    if not isinstance(value, dict):
        raise refusal(f"is {printable(repr(value))}, must be an object", value)
    parts: dict[str, TensorPart] = {}
    for module, text in value.items():
        part = TensorPart.parse(text) if isinstance(text, str) else None
        part = OTHERWISE if text is None else part
        if part is None or not module.isprintable():
            raise refusal(
                f"gives {printable(module)!r} {printable(repr(text))}, must give {_FORM}", text
            )
        parts[module] = part
    pair = overlapping(parts)
    if pair is not None:
        one, other = pair
        raise refusal(
            f"gives {printable(one)!r} and {printable(other)!r} the same part of "
            f"{printable(parts[one].tensor)!r}",
            other,
        )
    return parts


def tensors_field(parts: Mapping[str, TensorPart]) -> dict[str, Any]:
    """Return the field ``tensors`` of a configuration, which is left out where it is empty."""
    return {"tensors": {name: str(part) or None for name, part in parts.items()}} if parts else {}


def overlapping(parts: Mapping[str, TensorPart]) -> tuple[str, str] | None:
    """Return two modules that have a line of a tensor in common, if there are any."""
    if len({part.tensor for part in parts.values()}) == len(parts):
        return None
    last: dict[str, str] = {}
    stored = [module for module in parts if parts[module] != OTHERWISE]
    for module in sorted(stored, key=lambda m: (parts[m].tensor, parts[m].lines or (0, 0))):
        other = last.get(parts[module].tensor)
        if other is not None and parts[module].overlaps(parts[other]):
            return other, module
        last[parts[module].tensor] = module
    return None


def check_owners(
    parts: Mapping[str, TensorPart], modules: Collection[str], whole: Collection[str], file: object
) -> None:
    """Refuse parts of what the adapter does not have.

    Parameters
    ----------
    parts : mapping
        Module, or name of a tensor that the adapter has whole -> part.
    modules, whole : collection of str
        Those of the adapter.
    file : path
        Named in errors.

    Raises
    ------
    AdapterError
    """
    for name in parts:
        if name not in modules and name not in whole:
            raise AdapterError(
                f"names {printable(name)!r}, which is neither a module nor a whole tensor of the "
                "adapter; save the adapter again",
                file=file,
                field="tensors",
                value=name,
            )
