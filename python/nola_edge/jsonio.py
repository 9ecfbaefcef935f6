"""Strict JSON: what a reader could understand in two ways is refused."""

from __future__ import annotations

import json
from typing import Any

from nola_edge.errors import FormatError, printable


def loads(data: bytes, *, file: object) -> Any:
    """Parse UTF-8 JSON; refuse duplicate keys, NaN, Infinity and absurd nesting.

    Parameters
    ----------
    data : bytes
    file : path
        Named in errors.

    Raises
    ------
    FormatError
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FormatError(f"duplicate key {printable(key)!r} in JSON", file=file)
                seen.add(key)
        return result

    def refuse(constant: str) -> Any:
        raise FormatError(f"{constant} is not a JSON number", file=file)

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 (byte {error.start})", file=file) from None
    except RecursionError:
        raise FormatError("JSON is nested too deeply", file=file) from None
    except ValueError as error:
        raise FormatError(f"is not valid JSON: {printable(error)}", file=file) from None


def loads_object(data: bytes, *, file: object) -> dict[str, Any]:
    """Parse a JSON object strictly.

    Raises
    ------
    FormatError
    """
    value = loads(data, file=file)
    if not isinstance(value, dict):
        raise FormatError(f"holds a JSON {type(value).__name__}, not an object", file=file)
    return value
