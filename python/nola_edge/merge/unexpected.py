"""Say how a result differs from the one that an adapter expects, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.errors import MismatchError, printable
from nola_edge.files.folder import is_own_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nola_edge.adapters.expected import ExpectedResult
    from nola_edge.files.content_hash import ContentHash

_ANYWAY = "to have it anyway, pass --no-check-result (in Python check_result=False)"
_OTHER_BITS = "the base is not the publisher's to the bit, or was damaged: get it again"
_OTHER_FILES = "the base's weights are in other files than the publisher's: get the same ones"
_CARRIED = (
    "only files that are carried over from the base differ, not the weights: get these from where "
    "the publisher has the base"
)


def unexpected(
    found: ContentHash, results: Sequence[ExpectedResult], adapter: str, output: Path
) -> MismatchError:
    """Return the refusal of a result, by what is nearest to it of what would be right.

    Parameters
    ----------
    found : ContentHash
    results : sequence of ExpectedResult
        At least one.
    adapter : str
        Where they come from.
    output : Path
    """
    nearest = min(results, key=lambda result: len(_different(found, result)))
    names = _different(found, nearest)
    where = f"{printable(adapter)} expects of {printable(nearest.name)!r}"
    if not names:
        what = f"would have the SHA-256 {found.sha256}, not {nearest.sha256}, which {where}"
    else:
        more = f", and {len(names) - 1} more differ" if len(names) > 1 else ""
        what = f"would not be what {where}: {_said(names[0], found, nearest)}{more}"
    return MismatchError(
        f"{what}; {_advice(names, found, nearest)}; {_ANYWAY}",
        file=output,
        field="expected",
        value=found.sha256,
    )


def _different(found: ContentHash, result: ExpectedResult) -> list[str]:
    """Return the files of a folder that differ, weights first."""
    names = found.files.keys() | result.files.keys() if result.files else set()
    names = {name for name in names if found.files.get(name) != result.files.get(name)}
    return sorted(names, key=lambda name: (not is_own_weights(name), name))


def _said(name: str, found: ContentHash, result: ExpectedResult) -> str:
    here, wanted = found.files.get(name), result.files.get(name)
    if here is None:
        return f"{printable(name)} with the SHA-256 {wanted} would be missing"
    if wanted is None:
        return f"{printable(name)} with the SHA-256 {here} is not part of that"
    return f"{printable(name)} would have the SHA-256 {here}, not {wanted}"


def _advice(names: Sequence[str], found: ContentHash, result: ExpectedResult) -> str:
    weights = [name for name in names if is_own_weights(name)]
    if names and not weights:
        return _CARRIED
    alike = all(name in found.files and name in result.files for name in weights)
    return _OTHER_BITS if alike else _OTHER_FILES
