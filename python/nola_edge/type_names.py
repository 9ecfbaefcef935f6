"""What types of numbers are called: as files have it, and as torch, numpy and people do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Collection

_OTHER_NAMES = {
    "float32": "F32",
    "float": "F32",
    "fp32": "F32",
    "float16": "F16",
    "half": "F16",
    "fp16": "F16",
    "bfloat16": "BF16",
}


def type_name(given: object) -> str:
    """Return the name that files have for a type: ``"F16"`` for ``"f16"`` and ``torch.half``.

    Anything that is not another name for a type is only put in capitals.

    Parameters
    ----------
    given : object
        A name in any case, or a dtype of torch or numpy.
    """
    name = str(given).lower().removeprefix("torch.")
    return _OTHER_NAMES.get(name, name.upper())


def check_type(given: object, allowed: Collection[str], field: str = "dtype") -> str:
    """Return the name that files have for a type, if it is one of those allowed.

    Raises
    ------
    ArgumentError
    """
    name = type_name(given)
    if name not in allowed:
        raise ArgumentError(
            f"is {printable(repr(given))}, must be one of {', '.join(allowed)}", field=field
        )
    return name
