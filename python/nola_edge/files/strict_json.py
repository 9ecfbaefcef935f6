"""Strict JSON: what a reader could understand in two ways, or not at all, is refused.

JSON's grammar allows numbers that overflow, halves of characters and any depth, and readers differ
in what they make of them. Neither do such values come in here, nor go out.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError, printable
from nola_edge.files.signature import BEGIN, refuse_lfs_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A configuration is thousands of bytes long.
MAX_CONFIG_BYTES = 1_000_000
#: Levels of objects and lists; real files have ten, and some readers stop at 128.
MAX_DEPTH = 64
#: Digits of an integer: any of so many is within a double's range.
MAX_DIGITS = 308
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Finds a long number in no time: with all digits alike, it is a run of them.
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * (MAX_DIGITS + 1)
_TOO_LONG = f"is a number of more than {MAX_DIGITS} digits"
_TOO_DEEP = f"JSON is nested too deeply, more than {MAX_DEPTH} levels"
_NO_NUMBER = "is not a JSON number, nor is any beyond 1.8e308"
_CONTAINERS = (dict, list, tuple)


def loads(data: bytes, *, file: object) -> Any:
    """Parse UTF-8 JSON that has one meaning, and can be written again.

    Parameters
    ----------
    data : bytes
    file : path
        Named in errors.

    Raises
    ------
    FormatError
        At duplicate keys, NaN, Infinity, numbers beyond a double's range, halves of surrogate
        pairs, and absurd nesting.
    """
    text = decode_utf8(data, file)
    try:
        return Decoder(data, file).decode(text)
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


def dumps(value: Any, **layout: Any) -> str:
    """Format a value of our own making as ``json.dumps`` does; never a number that is not finite.

    Parameters
    ----------
    value : object
    **layout
        Options of ``json.dumps``.

    Raises
    ------
    ValueError
        If a number is infinite or NaN.
    """
    return json.dumps(value, allow_nan=False, **layout)


def encode(value: Any, *, file: object = None, **layout: Any) -> bytes:
    """Format a value for a file as UTF-8 that :func:`loads` reads.

    Parameters
    ----------
    value : object
    file : path, optional
        Named in errors.
    **layout
        Options of ``json.dumps``.

    Raises
    ------
    FormatError
        Naming the field that JSON, or :func:`loads`, does not know.
    """
    try:
        _check_values(value)
    except FormatError as error:
        error.file = file
        raise
    return dumps(value, **layout).encode()


def decode_utf8(data: bytes | memoryview, file: object) -> str:
    """Decode the text of a JSON file.

    Raises
    ------
    FormatError
        If it is not UTF-8, or begins with a byte order mark, which JSON does not allow.
    """
    refuse_lfs_pointer(bytes(data[:BEGIN]), file)
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 (byte {error.start})", file=file) from None
    if text.startswith("\ufeff"):
        raise FormatError(
            "is not valid JSON: begins with a byte order mark; save it without one", file=file
        )
    return text


class Decoder:
    """Parses the values of one JSON text, as :func:`loads` does.

    Parameters
    ----------
    data : bytes
        The whole text.
    file : path
        Named in errors.
    """

    def __init__(self, data: bytes | memoryview, file: object) -> None:
        self._file = file
        self._numbers = _Numbers()
        raw = bytes(data)
        self._has_escapes = b"\\u" in raw
        self._json = json.JSONDecoder(
            object_pairs_hook=_unique,
            parse_constant=self._numbers.real,
            parse_float=self._numbers.real,
            parse_int=self._numbers.integer if _LONG in raw.translate(_DIGITS) else int,
        )

    def decode(self, text: str) -> Any:
        """Parse a text that is one value.

        Raises
        ------
        FormatError
            Naming the file and the field.
        ValueError
            If it is no JSON.
        """
        with self._naming_file():
            return self._checked(self._json.decode(text), "")

    def raw_decode(self, text: str, field: str) -> tuple[Any, int]:
        """Parse the value that a text begins with; return it and its length in characters.

        Parameters
        ----------
        text : str
        field : str
            The value's own name, for errors.

        Raises
        ------
        FormatError, ValueError
            As for :meth:`decode`.
        """
        with self._naming_file():
            value, length = self._json.raw_decode(text)
            return self._checked(value, field), length

    def _checked(self, value: Any, field: str) -> Any:
        _check_depth(value)
        if self._numbers.too_large or self._has_escapes:
            _check_values(value, field)
        return value

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            error.file = self._file
            raise
        except RecursionError:
            raise FormatError(_TOO_DEEP, file=self._file) from None


class _Numbers:
    """Makes numbers of digits, and notes whether one must be looked for and refused."""

    def __init__(self) -> None:
        self.too_large = False

    def real(self, text: str) -> float:
        value = float(text)
        self.too_large |= not math.isfinite(value)
        return value

    def integer(self, text: str) -> float:
        if len(text) <= MAX_DIGITS:
            return int(text)
        self.too_large = True
        return int(text) if len(text) == MAX_DIGITS + 1 else math.inf  # it may begin with a sign


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FormatError(f"duplicate key {printable(key)!r} in JSON")
            seen.add(key)
    return result


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, _CONTAINERS)
        ]
        if not level:
            return
    raise FormatError(_TOO_DEEP)


def _check_values(value: Any, field: str = "", depth: int = 0) -> None:
    """Refuse the first key or value that not every reader understands, by its name."""
    if isinstance(value, _CONTAINERS) and depth == MAX_DEPTH:
        raise FormatError(_TOO_DEEP)  # or a value that holds itself
    if isinstance(value, dict):
        for key, child in value.items():
            reason = _reason(key) if isinstance(key, str) else f"is a {type(key).__name__}"
            if reason is not None:
                raise FormatError(f"a key of it {reason}", field=field or None)
            _check_values(child, f"{field}.{key}" if field else key, depth + 1)
    elif isinstance(value, list | tuple):
        for place, child in enumerate(value):
            _check_values(child, f"{field}[{place}]", depth + 1)
    else:
        reason = _reason(value)
        if reason is not None:
            raise FormatError(f"{reason}; correct it or leave it out", field=field or None)


def _reason(scalar: object) -> str | None:
    """Say what is wrong with a scalar, or nothing."""
    if isinstance(scalar, str):
        if _SURROGATE.search(scalar) is None:
            return None
        return f"is '{printable(scalar)}', which contains half of a surrogate pair"
    if isinstance(scalar, int):
        return None if abs(scalar) < 10**MAX_DIGITS else _TOO_LONG
    if isinstance(scalar, float):
        return None if math.isfinite(scalar) else f"{json.dumps(scalar)} {_NO_NUMBER}"
    return None if scalar is None else f"is a {type(scalar).__name__}, which JSON cannot represent"
