"""The fields of PEFT's ``adapter_config.json``, checked one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.nola_config import MAX_RANK, OF_EVERY_METHOD
from nola_edge.adapters.patterns import why_unusable
from nola_edge.adapters.tensor_parts import TensorPart, parse_parts
from nola_edge.errors import AdapterError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

#: What to do about most of what is not merged here.
WITH_PEFT = "merge it with PEFT (merge_and_unload, then save_pretrained)"
#: Known fields of PEFT's other methods that never change merged weights.
BOOKKEEPING = OF_EVERY_METHOD | {"peft_type", "runtime_config"}
_MAX_ALPHA = 1e30


def is_off(value: object) -> bool:
    """Tell whether a field's value is as good as none."""
    return value is None or value is False or value in ("", [], {})


def is_rank(value: object) -> bool:
    """Tell whether a value is a rank."""
    return type(value) is int and 1 <= value <= MAX_RANK


def is_alpha(value: object) -> bool:
    """Tell whether a value can be a ``lora_alpha``."""
    return type(value) in (int, float) and abs(value) <= _MAX_ALPHA  # type: ignore[arg-type]


class Fields:
    """Takes fields out of a parsed configuration, each checked; what is left is refused.

    Parameters
    ----------
    data : dict
        Fields that are off (null, false, empty) count as missing.
    file : Path
        Named in errors.
    refused : mapping
        Field -> why it cannot be on, and what to do, where that is known.
    """

    def __init__(self, data: dict[str, Any], file: Path, refused: Mapping[str, str]) -> None:
        self._rest = {name: value for name, value in data.items() if not is_off(value)}
        self._file = file
        self._refused = refused

    def take(self, name: str, default: Any) -> Any:
        """Return a field as it is."""
        return self._rest.pop(name, default)

    def those_of(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the fields of these names that are there."""
        return {name: self._rest.pop(name) for name in sorted(set(names) & set(self._rest))}

    def _refusal(self, name: str, value: object, requirement: str) -> AdapterError:
        return AdapterError(
            f"is {printable(repr(value))}, must be {requirement}",
            file=self._file,
            field=name,
            value=value,
        )

    def _needed(self, name: str) -> Any:
        if name not in self._rest:
            raise AdapterError(
                "is missing, and nothing else implies it; add the value that the adapter was "
                "trained with",
                file=self._file,
                field=name,
            )
        return self._rest.pop(name)

    def rank(self, name: str) -> int:
        """Return a rank, which must be there."""
        return self.integer(name, 1, MAX_RANK)

    def integer(self, name: str, least: int, most: int) -> int:
        """Return an integer in least..most, which must be there."""
        value = self._needed(name)
        if type(value) is not int or not least <= value <= most:
            raise self._refusal(name, value, f"an integer in {least}..{most}")
        return value

    def number(self, name: str, least: float, most: float) -> float:
        """Return a number from `least` to `most`, which must be there."""
        value = self._needed(name)
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._refusal(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def alpha(self, name: str) -> float:
        """Return a number, which must be there."""
        value = self._needed(name)
        if not is_alpha(value):
            raise self._refusal(name, value, "a number of at most 1e30")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return whether a field is on."""
        value = self._rest.pop(name, False)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of several texts, the first where there is none."""
        value = self._rest.pop(name, choices[0])
        if value not in choices:
            raise self._refusal(name, value, f"one of {', '.join(choices)}")
        return str(value)

    def names(self, name: str) -> tuple[str, ...]:
        """Return names of modules."""
        value = self._rest.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._refusal(name, value, "a list of module names")
        return tuple(value)

    def pattern(self, name: str, is_value: Any, what: str) -> dict[str, Any]:
        """Return values by regular expression."""
        value = self._rest.pop(name, {})
        if not isinstance(value, dict) or not all(map(is_value, value.values())):
            raise self._refusal(name, value, f"an object that gives each pattern {what}")
        for key in value:
            reason = why_unusable(key)
            if reason is not None:
                raise AdapterError(
                    f"has the pattern {printable(repr(key))}, which {reason}; name the modules "
                    "themselves",
                    file=self._file,
                    field=name,
                )
        return value

    def parts(self, name: str) -> dict[str, TensorPart]:
        """Return parts of stored tensors by the module that each is."""
        return parse_parts(self._rest.pop(name, {}), self._file)

    def common(self, own_biases: str, training: Collection[str] = ()) -> dict[str, Any]:
        """Return the fields of a :class:`~nola_edge.adapters.stored.StoredConfig`.

        Parameters
        ----------
        own_biases : str
            What the method calls the biases of its own modules, the value of ``bias`` for them.
        training : collection of str
            Fields that say how the method trains, and never change merged weights.
        """
        return {
            "fan_in_fan_out": self.flag("fan_in_fan_out"),
            "bias": self.choice("bias", ("none", "all", own_biases)),
            "modules_to_save": self.names("modules_to_save"),
            "tensors": self.parts("tensors"),
            "bookkeeping": self.those_of(BOOKKEEPING.union(training)),
        }

    def refuse_rest(self) -> None:
        """Refuse what nobody has taken."""
        for name, value in self._rest.items():
            reason = self._refused.get(
                name,
                "not understood here, and it may change the weights; upgrade nola-edge, or remove "
                "the field if you know that it does not matter",
            )
            raise AdapterError(
                f"is {printable(value)}: {reason}", file=self._file, field=name, value=value
            )
