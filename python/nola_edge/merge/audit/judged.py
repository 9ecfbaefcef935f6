"""What is judged by itself: a tensor, a matrix of a stack, or a module's lines of a tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.files.tensor_info import TensorInfo
from nola_edge.merge.merged import Merged
from nola_edge.merge.parts import lines_name, segments
from nola_edge.merge.result import Stored
from nola_edge.merge.stacks import MergedStack, matrices_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nola_edge.files.input_file import Source
    from nola_edge.merge.audit.compare import Expected
    from nola_edge.merge.low_rank import Term
    from nola_edge.merge.result import Result
    from nola_edge.ops import Range

    Found = tuple[Source, TensorInfo]


class Judged(NamedTuple):
    """A tensor, or a part of one, with what it should be and where it was found.

    Attributes
    ----------
    name : str
        No other has it.
    right : Result
    found : (Source, TensorInfo)
    matrix : int, optional
        Which of a stack it is.
    lines : (start, stop), optional
        Which lines of a tensor that holds several modules.
    module : str, optional
        Whose lines they are; None if no adapter changes them.
    """

    name: str
    right: Result
    found: Found
    matrix: int | None = None
    lines: Range | None = None
    module: str | None = None


def judged_of(name: str, right: Result, found: Found) -> list[Judged]:
    """Return what is judged of a tensor: itself, or all of its parts in order.

    Parameters
    ----------
    name : str
    right : Result
        What it should be.
    found : (Source, TensorInfo)
        Where it is; of the same dtype and shape.
    """
    if isinstance(right, MergedStack):
        pairs = zip(right.matrices, matrices_of(found[1]), strict=True)
        return [Judged(h.name, m, (found[0], h), n) for n, (m, h) in enumerate(pairs)]
    if isinstance(right, Merged) and not _is_whole(right):
        return [_judged_lines(right, found, lines, terms) for lines, terms in _divided(right)]
    return [Judged(name, right, found)]


def merged_by_name(expected: Expected) -> dict[str, Merged]:
    """Return all that adapters are merged into and is judged by itself, by its name."""
    found = {}
    for name in expected.merges:
        right = expected.result(name)
        assert isinstance(right, Merged)
        for judged in judged_of(name, right, (right.file, right.info)):
            if isinstance(judged.right, Merged):
                found[judged.name] = judged.right
    return found


def _is_whole(right: Merged) -> bool:
    return all(term.target.is_whole(right.shape) for term in right.terms)


def _divided(right: Merged) -> Iterator[tuple[Range, Sequence[Term]]]:
    """Yield all lines of a weight in segments, with no terms those that nothing changes."""
    end = right.shape[1 if right.terms[0].target.transposed else 0]
    begin = 0
    for lines, terms in [*segments(right.terms, right.shape), ((end, end), ())]:
        if begin < lines[0]:
            yield (begin, lines[0]), ()
        if terms:
            yield lines, terms
        begin = lines[1]


def _judged_lines(right: Merged, found: Found, lines: Range, terms: Sequence[Term]) -> Judged:
    transposed = right.terms[0].target.transposed
    # Where an adapter takes several modules for one, another may name each.
    own = min(terms, key=lambda t: t.target.lines[1] - t.target.lines[0]).module if terms else None
    name = lines_name(right.info.name, lines, own)
    base, there = (
        _lines_of(file, info, name, lines, transposed)
        for file, info in ((right.file, right.info), found)
    )
    if not terms:
        return Judged(name, Stored(*base), there, lines=lines)
    moved = tuple(_moved(term, lines[0]) for term in terms)
    part = replace(right, file=base[0], info=base[1], terms=moved)
    return Judged(name, part, there, lines=lines, module=own)


def _moved(term: Term, begin: int) -> Term:
    """Return a term for what begins at a line of its weight."""
    start, stop = term.target.lines
    return replace(term, target=term.target._replace(lines=(start - begin, stop - begin)))


def _lines_of(file: Source, info: TensorInfo, name: str, lines: Range, transposed: bool) -> Found:
    """Return lines of a stored matrix as a matrix of their own."""
    (rows, cols), (start, stop) = info.shape, lines
    if not transposed:
        begin, end = (info.start + line * (info.nbytes // rows) for line in lines)
        return file, TensorInfo(name, info.dtype, (stop - start, cols), begin, end)
    columns = _Columns(file, info, lines)
    return columns, TensorInfo(name, info.dtype, (rows, stop - start), 0, columns.nbytes)


class _Columns:
    """Columns of a stored matrix, read as if they were all that is stored."""

    def __init__(self, file: Source, info: TensorInfo, cols: Range) -> None:
        rows = info.shape[0]
        item = info.nbytes // info.size
        self._file = file
        self._begin = info.start + cols[0] * item
        self._length = (cols[1] - cols[0]) * item
        self._stride = info.nbytes // rows
        self.nbytes = rows * self._length

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self._file.path

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with what begins at an offset of the columns."""
        row, skip = divmod(offset, self._length)
        done = 0
        while done < len(buffer):
            part = buffer[done : done + self._length - skip]
            self._file.read_into(part, self._begin + row * self._stride + skip)
            done, row, skip = done + len(part), row + 1, 0
