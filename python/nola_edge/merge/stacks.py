"""Stored stacks of matrices, (count, rows, columns), of which each is merged as one by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.dtypes import MERGEABLE
from nola_edge.files.tensor_info import TensorInfo
from nola_edge.merge.result import FromFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.files.input_file import Source
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.merge.merged import Merged
    from nola_edge.merge.result import Piece, Stored

    Tensors = Mapping[str, tuple[SafetensorsFile, TensorInfo]]


def matrix_name(stack: str, number: int) -> str:
    """Return the name of a matrix of a stack."""
    return f"{stack}.{number}.weight"


def matrices_of(info: TensorInfo) -> list[TensorInfo]:
    """Return the entries of a stack's matrices, called ``<stack>.<number>.weight``."""
    count, *shape = info.shape
    size = info.nbytes // max(1, count)
    starts = [info.start + number * size for number in range(count)]
    return [
        TensorInfo(matrix_name(info.name, n), info.dtype, tuple(shape), start, start + size)
        for n, start in enumerate(starts)
    ]


class Stacks:
    """The stacks of a base, and their matrices by name.

    Parameters
    ----------
    base : Checkpoint
    """

    def __init__(self, base: Checkpoint) -> None:
        self.names: dict[str, tuple[str, ...]] = {}
        self.matrices: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
        for name, (file, info) in base.tensors.items():
            if len(info.shape) == 3 and info.dtype in MERGEABLE:
                parts = matrices_of(info)
                self.names[name] = tuple(part.name for part in parts)
                self.matrices |= {part.name: (file, part) for part in parts}


@dataclass(eq=False, repr=False)
class MergedStack(FromFile):
    """A stack of which adapters change some matrices.

    Attributes
    ----------
    file, info
        Where it is stored.
    matrices : tuple of Merged or Stored
        In order.
    """

    file: Source
    info: TensorInfo
    matrices: tuple[Merged | Stored, ...]

    def pieces(self, num_threads: int | None = None) -> Iterator[Piece]:
        """Yield those of one matrix after the other; see :meth:`Result.pieces`."""
        for number, matrix in enumerate(self.matrices):
            for piece in matrix.pieces(num_threads):
                yield self.placed(piece, number)

    def placed(self, piece: Piece, number: int) -> Piece:
        """Return a piece of one of the matrices as one of the stack."""
        begin = self.matrices[number].info.start - self.info.start
        return piece._replace(runs=piece.runs._replace(offset=begin + piece.runs.offset))
