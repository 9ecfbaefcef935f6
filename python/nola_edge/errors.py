"""All errors with which nola-edge refuses something, each with a message of one printable line."""

from __future__ import annotations

import sys

_LIMIT = 120


def printable(text: object, limit: int = _LIMIT) -> str:
    """Make text from a file safe to print: escape what is not printable, shorten what is long.

    Parameters
    ----------
    text : object
        Converted by ``str``.
    limit : int
        Longest result, in characters.
    """
    whole = str(text)
    # Escaping can only lengthen, so nothing beyond the limit needs to be looked at.
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in whole[: limit + 1]
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


class NolaEdgeError(Exception):
    """Base of all refusals.

    Parameters
    ----------
    message : str
        What is wrong and what to do next.
    file : path, optional
        The file or folder it is about.
    field : str, optional
        The field, tensor or argument in it.
    value : object, optional
        The offending value.
    """

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        field: str | None = None,
        value: object = None,
    ) -> None:
        self.message = message
        self.file = file
        self.field = field
        self.value = value
        super().__init__(message)

    def __str__(self) -> str:
        parts = []
        if self.file is not None:
            parts.append(printable(self.file, 240))
        if self.field is not None:
            parts.append(printable(self.field))
        return printable(": ".join([*parts, self.message]), 1000)


class FormatError(NolaEdgeError):
    """A file is not what it claims to be."""


class AdapterError(NolaEdgeError):
    """An adapter cannot be used."""


class CheckpointError(NolaEdgeError):
    """A base checkpoint cannot be used."""


class MismatchError(NolaEdgeError):
    """Adapter and base do not fit together."""


class ArgumentError(NolaEdgeError, ValueError):
    """An argument cannot be used; its name is the error's `field`."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is not of a type that can be used."""


class UnknownModuleError(ArgumentError, KeyError):
    """An adapter has no module with the requested name."""


class NotFiniteError(NolaEdgeError):
    """A coefficient or a merged weight is infinite or NaN."""


class OutputError(NolaEdgeError):
    """The output cannot be written to the requested place."""


class ChangedError(NolaEdgeError):
    """An input changed while it was being read."""


class NolaEdgeWarning(UserWarning):
    """What was asked for is done, but is probably not what was meant."""


def warn(message: str) -> None:
    """Give a :class:`NolaEdgeWarning` that names the line from which the package was called."""
    import warnings  # rarely wanted

    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_own(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, NolaEdgeWarning, stacklevel=level)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]
