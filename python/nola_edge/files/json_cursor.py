"""JSON read member by member, so that memory is bounded whatever a file claims.

Parsed JSON takes up to thirty times its size. What may be larger than a configuration, a header or
an index, is an object or a list of many small members.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nola_edge.errors import FormatError, printable
from nola_edge.files.strict_json import Decoder, decode_utf8

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Text that is not ASCII takes up to four times its size.
_MAX_WIDE_BYTES = 4 << 20
_MAX_KEY = 8192
#: Characters that a value is looked for in first, and how many times more then.
_SHORT = 256
_GROWTH = 32
_SPACE = re.compile(r"[ \t\n\r]*")


class Cursor:
    """Goes through JSON from beginning to end, so that memory holds one member at a time.

    Parameters
    ----------
    data : bytes
        UTF-8.
    file : path
        Named in errors.

    Raises
    ------
    FormatError
        Here and by every method, as for :func:`loads`.
    """

    def __init__(self, data: bytes | memoryview, *, file: object) -> None:
        self._file = file
        if len(data) > _MAX_WIDE_BYTES and not bytes(data).isascii():
            raise FormatError(
                f"has {len(data)} bytes of JSON that is not ASCII, more than {_MAX_WIDE_BYTES}",
                file=file,
            )
        self._text = decode_utf8(data, file)
        self._decoder = Decoder(data, file)
        self._field = ""
        self._at = 0

    def _invalid(self, message: object) -> FormatError:
        return FormatError(f"is not valid JSON: {printable(message)}", file=self._file)

    def begins_with(self, sign: str) -> bool:
        """Tell whether the text begins with a character, with no space before it."""
        return self._text.startswith(sign)

    def peek(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _take(self, *signs: str) -> str:
        sign = self.peek()
        if sign not in signs or not sign:
            raise self._invalid(f"{' or '.join(map(repr, signs))} expected at {self._at}")
        self._at += 1
        return sign

    def keys(self, most: int) -> Iterator[str]:
        """Yield the keys of an object; after each, its value must be read.

        Parameters
        ----------
        most : int
            More members are refused.
        """
        self._take("{")
        seen: set[str] = set()
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            if self.peek() != '"':
                raise self._invalid(f"no key at {self._at}")
            key = self.value(_MAX_KEY)
            if key in seen:
                raise FormatError(f"duplicate key {printable(key)!r} in JSON", file=self._file)
            seen.add(key)
            self._refuse_more(len(seen), most)
            self._take(":")
            self._field = key
            yield key
            self._field = ""
            if self._take(",", "}") == "}":
                return

    def items(self, most: int, longest: int) -> Iterator[Any]:
        """Yield the values of a list.

        Parameters
        ----------
        most : int
            More values are refused.
        longest : int
            Characters of a value.
        """
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        count = 0
        while True:
            count += 1
            self._refuse_more(count, most)
            yield self.value(longest)
            if self._take(",", "]") == "]":
                return

    def _refuse_more(self, count: int, most: int) -> None:
        if count > most:
            raise FormatError(f"has more than {most} members", file=self._file)

    def value(self, longest: int) -> Any:
        """Read a value of at most so many characters."""
        self.peek()
        most = min(longest, _SHORT)
        while True:
            piece = self._text[self._at : self._at + most]
            whole = len(piece) < most  # of what is left
            try:
                value, length = self._decoder.raw_decode(piece, self._field)
                if whole or length < most:  # else a number may go on
                    self._at += length
                    return value
            except ValueError as error:
                if whole:
                    raise self._invalid(error) from None
            if most == longest:
                raise FormatError(
                    f"has a JSON value of more than {longest} characters", file=self._file
                )
            most = min(longest, _GROWTH * most)

    def end(self) -> None:
        """Refuse whatever follows."""
        if self.peek():
            raise self._invalid(f"more than one value (character {self._at})")
