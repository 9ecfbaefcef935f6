"""What a caller says about names: ``NEW=OLD``, what an adapter calls NEW a base calls OLD."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.tensor_parts import WEIGHT, TensorPart
from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_LINES = r"\[[0-9]+:[0-9]+\]"
_ANY_LINES = r"\[[^\[\]]*:[^\[\]]*\]"
_WHOLE_NAME = r".+\.weight(\[.*\])?"
_COLLECTIONS = 'a mapping {"NEW": "OLD"} or a list ["NEW=OLD"]'
_FORM = 'must be NEW=OLD, as in "model.language_model=model" or "q_proj=qkv_proj[0:64]"'


class Renames:
    """Rules that turn module names of adapters into names of a base.

    NEW and OLD are one name or several with dots between. NEW is replaced wherever a module has it
    as whole parts of its name, the longest NEW first; what was replaced is not looked at again. An
    OLD that ends in ".weight" is the whole name of a tensor, and NEW then that of a module or of a
    tensor. Another OLD makes the name of a module, which gets ".weight", or that of a tensor if the
    base has one so called.

    Parameters
    ----------
    given : mapping from NEW to OLD, iterable of "NEW=OLD", or None

    Raises
    ------
    ArgumentError
        If one is not of that form, or gives a NEW two meanings.
    """

    def __init__(self, given: Any = None) -> None:
        self._rules: dict[tuple[str, ...], str] = {}
        self._used: set[tuple[str, ...]] = set()
        for new, old in _pairs(given):
            parts = tuple(new.split("."))
            if not all(parts):
                raise _refusal(f"{new}={old}")
            _check_lines(new, old)
            if self._rules.setdefault(parts, old) != old:
                raise _two_meanings(new, self._rules[parts], old)
        self._longest = max(map(len, self._rules), default=0)

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def rules(self) -> dict[str, str]:
        """Return NEW -> OLD."""
        return {".".join(new): old for new, old in self._rules.items()}

    @property
    def unused(self) -> list[str]:
        """Return each NEW that no name had to do with."""
        return [".".join(new) for new in self._rules if new not in self._used]

    def apply(self, name: str) -> str | None:
        """Return a name with the rules applied; None if none of them has to do with it."""
        if not self._rules:
            return None
        parts, renamed = name.split("."), []
        place, changed = 0, False
        while place < len(parts):
            rule = self._rule_at(parts, place)
            if rule is None:
                renamed.append(parts[place])
                place += 1
                continue
            changed = True
            self._used.add(rule)
            renamed += [self._rules[rule]] if self._rules[rule] else []
            place += len(rule)
        return ".".join(renamed) if changed else None

    def _rule_at(self, parts: Sequence[str], place: int) -> tuple[str, ...] | None:
        for count in range(min(self._longest, len(parts) - place), 0, -1):
            rule = tuple(parts[place : place + count])
            if rule in self._rules and (count == len(parts) or not self._is_for_whole_names(rule)):
                return rule
        return None

    def _is_for_whole_names(self, rule: tuple[str, ...]) -> bool:
        return re.fullmatch(_WHOLE_NAME, self._rules[rule]) is not None

    def module(self, module: str, tensors: Collection[str] = ()) -> TensorPart | None:
        """Return which part of which tensor a module's weight is by these rules, if they say so.

        Parameters
        ----------
        module : str
        tensors : collection of str
            Those of the base: one of them is meant as it is, another name gets ``.weight``.

        Raises
        ------
        ArgumentError
            If what they make of it names no part of a tensor.
        """
        return self._part(module, WEIGHT, tensors)

    def tensor(self, name: str) -> TensorPart | None:
        """Return the same for the name of a tensor that an adapter has whole."""
        part = self._part(name, "", ())
        if part is None and name.endswith(WEIGHT):
            return self.module(name.removesuffix(WEIGHT))  # a rule for its whole name
        return part

    def _part(self, name: str, ending: str, tensors: Collection[str]) -> TensorPart | None:
        renamed = self.apply(name)
        if renamed is None:
            return None
        lines = re.findall(_LINES, renamed)
        plain = re.sub(_LINES, "", renamed)
        if not _is_tensor(plain, tensors):
            plain += ending
        part = TensorPart.parse(plain + "".join(lines))
        if part is None or len(lines) > 1:
            raise _refusal(renamed)
        return part

    def check_used(self) -> None:
        """Refuse rules that no name had to do with.

        Raises
        ------
        ArgumentError
        """
        for new in self.unused:
            raise ArgumentError(
                f"{printable(new)!r} does not occur in any module name of the adapter; nola-edge "
                "inspect ADAPTER --modules lists them",
                field="rename",
                value=new,
            )


def _is_tensor(name: str, tensors: Collection[str]) -> bool:
    """Tell whether a name is that of a tensor, below a prefix perhaps, and not of a module."""
    if name.endswith(WEIGHT) or name in tensors:
        return True
    return name.endswith("weight") and any(t.endswith(f".{name}") for t in tensors)


def _pairs(given: Any) -> Iterable[tuple[str, str]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        items = list(given.items())
    elif isinstance(given, str) or not isinstance(given, Iterable):
        raise arguments.wrong_type(
            "rename", given, 'a mapping {"NEW": "OLD"} or a list ["NEW=OLD"]'
        )
    else:
        items = [_split(text) for text in given]
    for new, old in items:
        if not isinstance(new, str) or not isinstance(old, str) or not (new + old).isprintable():
            raise _refusal(f"{new}={old}")
    return items


def _split(text: Any) -> tuple[str, str]:
    new, equals, old = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not equals or not new:
        raise _refusal(text)
    return new, old


def _check_lines(new: str, old: str) -> None:
    for lines in re.findall(_ANY_LINES, old):
        if TensorPart.parse(f"x{lines}") is None:
            raise ArgumentError(
                f"is {printable(repr(f'{new}={old}'))}, must be NEW=OLD, and its [START:STOP] must "
                'be two numbers, the smaller first, as in "q_proj=qkv_proj[0:64]"',
                field="rename",
                value=f"{new}={old}",
            )


def _two_meanings(new: str, one: str, other: str) -> ArgumentError:
    return ArgumentError(
        f"gives {printable(new)!r} two meanings, {printable(one)!r} and {printable(other)!r}; give "
        "it one, or write more of the names that each is for: model.NEW=OLD",
        field="rename",
        value=new,
    )


def _refusal(found: object) -> ArgumentError:
    return ArgumentError(f"is {printable(repr(found))}, {_FORM}", field="rename", value=found)
