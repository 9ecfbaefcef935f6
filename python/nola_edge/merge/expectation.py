"""What a result must be before it is put in place: a caller's hash, and what an adapter records."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nola_edge.adapters.belongs import location
from nola_edge.adapters.fingerprints import base_fingerprint
from nola_edge.errors import MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.adapters.expected import ExpectedResult
    from nola_edge.merge.plan import MergePlan

_NOT_COMPARED = "the result was not compared with what the adapter expects"


class Expectation(NamedTuple):
    """What is expected of a result.

    Attributes
    ----------
    sha256 : str or None
        What the caller says.
    results : tuple of ExpectedResult
        What the adapter says of this base; the result must be one of them, if there are any.
    note : str or None
        For the summary: why the adapter's word does not apply.
    adapter : str
        Where that comes from, for errors.
    """

    sha256: str | None = None
    results: tuple[ExpectedResult, ...] = ()
    note: str | None = None
    adapter: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the note, if there is one."""
        return () if self.note is None else (self.note,)

    def check(self, path: Path, output: Path, num_threads: int | None = None) -> str | None:
        """Refuse a result that is not in place yet, if another was expected.

        Parameters
        ----------
        path : Path
            Where it is.
        output : Path
            Where it was to go, for the error.
        num_threads : int, optional
            That hash it.

        Returns
        -------
        str or None
            What the adapter's publisher calls the base of which it expects this result.

        Raises
        ------
        MismatchError
        """
        if self.sha256 is None and not self.results:
            return None
        from nola_edge.files.content_hash import check_hash, content_hash
        from nola_edge.files.input_file import opening

        with opening(output):
            found = content_hash(path, num_threads=num_threads)
        check_hash(found.sha256, self.sha256, output)
        for result in self.results:
            if result.sha256 == found.sha256:
                return result.name
        if self.results:
            from nola_edge.merge.unexpected import unexpected

            raise unexpected(found, self.results, self.adapter, output)
        return None


def expectation(
    adapters: Sequence[tuple[LowRankAdapter, float]],
    kind: str,
    fingerprint: Callable[[], str],
    *,
    sha256: str | None = None,
    plainly: bool = True,
    check_result: bool = True,
) -> Expectation:
    """Return what is expected of a merge.

    Parameters
    ----------
    adapters : sequence of (LowRankAdapter, float)
    kind : str
        What the base and the result are, of those of an ExpectedResult.
    fingerprint : callable
        Returns that of the base; called where it is needed.
    sha256 : str, optional
        What the caller expects.
    plainly : bool
        Whether no other option than the adapters changes the result.
    check_result : bool
        Whether the adapter's word counts.

    Raises
    ------
    MismatchError
        If the adapter expects results of this kind, and none of this base.
    """
    said = Expectation(sha256)
    knowing = [adapter for adapter, _ in adapters if adapter.expected]
    if not knowing:
        return said
    if not check_result:
        return said._replace(note=f"{_NOT_COMPARED}: --no-check-result (check_result=False)")
    if not plainly or len(adapters) > 1 or adapters[0][1] != 1:
        return said._replace(
            note=f"{_NOT_COMPARED}, which is of a merge of it alone, with weight 1 and without "
            "options that change the result"
        )
    adapter = knowing[0]
    names = printable(", ".join(result.name for result in adapter.expected), 300)
    if all(result.kind != kind for result in adapter.expected):
        return said._replace(note=f"the adapter expects results for {names} only: {_NOT_COMPARED}")
    results = _of_base(adapter, kind, fingerprint(), names)
    return said._replace(results=results, adapter=str(location(adapter)))


def _of_base(
    adapter: LowRankAdapter, kind: str, fingerprint: str, names: str
) -> tuple[ExpectedResult, ...]:
    """Return what an adapter expects of the base with a fingerprint; refuse one that it lacks.

    A damaged base has another fingerprint too, if it was damaged where that looks.
    """
    known = (result for result in adapter.expected if result.kind == kind)
    results = tuple(result for result in known if result.base_fingerprint == fingerprint)
    if not results:
        raise MismatchError(
            f"is of {names}, and this base, with the fingerprint {fingerprint}, is none of them: "
            "another model, another dtype, already merged, or damaged; get the publisher's base, "
            "or, to merge into this one, pass --no-check-result (in Python check_result=False)",
            file=location(adapter),
            field="expected",
            value=fingerprint,
        )
    return results


def base_fingerprint_of(plan: MergePlan) -> str:
    """Return the fingerprint of what adapters are merged into."""
    terms = ((name, term) for name, found in plan.merges.items() for term in found)
    return base_fingerprint((term.module, *plan.tensor(name)) for name, term in terms)
