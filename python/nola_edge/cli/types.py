"""Types of numbers as options take them: in any case, and by torch's names too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nola_edge.type_names import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


#: Types of merged tensors in a GGUF file.
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


#: Ways to round to a quantised type of GGUF.
ROUNDINGS = ("nearest", "amplified")


class TypeChoice(click.Choice):  # type: ignore[type-arg]  # no generic class before click 8.2
    """One of some types; gives the name that files have for it, in capitals."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__([name.lower() for name in names])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check a value, and return it in capitals."""
        chosen = type_name(value).lower()
        if chosen not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}.", param, ctx)
        return chosen.upper()


def type_option(names: Sequence[str], **settings: Any) -> Callable[[Any], Any]:
    """Return the option ``--dtype``, also called ``--outtype`` as in llama.cpp."""
    return click.option("--dtype", "--outtype", "dtype", type=TypeChoice(names), **settings)


def rounding_option(**settings: Any) -> Callable[[Any], Any]:
    """Return the option ``--rounding``."""
    choice = click.Choice(ROUNDINGS, case_sensitive=False)
    return click.option("--rounding", type=choice, **settings)


def check_gguf_options(dtype: str | None, rounding: str | None, gguf: bool) -> None:
    """Refuse a type or a rounding where there is no choice.

    Raises
    ------
    click.UsageError
    """
    if dtype is not None and not gguf:
        raise click.UsageError(
            "--dtype (--outtype) is for GGUF files; a checkpoint keeps its dtypes"
        )
    if rounding is not None and not gguf:
        raise click.UsageError(
            "--rounding is for GGUF files; a checkpoint's weights are rounded to the nearest number"
        )
