"""Values by regular expression, as ``rank_pattern`` and ``alpha_pattern`` of PEFT give them.

The expressions come from a file: those that could take forever to match are refused.
"""

from __future__ import annotations

import re
from typing import Any

from nola_edge.errors import AdapterError, printable

_MAX_PATTERN = 1000
#: Repetitions of any length. A match may take as many steps as a name has characters, to the power
#: of these and one more.
_MAX_REPEATS = 3
_MAX_NAME = 250


def why_unusable(pattern: str) -> str | None:
    """Say what keeps a regular expression from being matched in little time, or nothing."""
    plain = re.sub(r"\\.|\[[^\]]*\]", "_", pattern)
    if len(pattern) > _MAX_PATTERN or re.search(r"\)[*+{]|\(\?(?!:)|[*+}][*+{]", plain):
        return "could take too long to match"
    if len(re.findall(r"[*+{]", plain)) > _MAX_REPEATS:
        return f"repeats more than {_MAX_REPEATS} parts and could take too long to match"
    try:
        re.compile(f"({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return "is not a regular expression"
    return None


class PatternTable:
    """Looks names up as PEFT does: the first pattern decides that matches a name, or its end.

    Parameters
    ----------
    values : dict
        Pattern -> value.
    default : object
        The value of names that no pattern matches.
    """

    def __init__(self, values: dict[str, Any], default: Any) -> None:
        self._default = default
        self._compiled = [(re.compile(rf"(.*\.)?({key})$"), v) for key, v in values.items()]

    def __getitem__(self, module: str) -> Any:
        if self._compiled and len(module) > _MAX_NAME:
            raise AdapterError(
                f"is longer than {_MAX_NAME} characters, too long to be matched with patterns",
                field=printable(module),
            )
        for pattern, value in self._compiled:
            if pattern.match(module):
                return value
        return self._default
