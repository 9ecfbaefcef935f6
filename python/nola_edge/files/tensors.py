"""Tensors that are written block by block, wherever their elements come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.safetensors import SafetensorsFile

#: Elements that are in memory at a time.
BLOCK_ELEMENTS = 1 << 20


class Tensor(ABC):
    """A tensor that need not be in memory.

    Attributes
    ----------
    dtype : numpy.dtype
    shape : tuple of int
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    #: Bytes of it that are in memory all the time.
    held: int = 0

    @property
    def size(self) -> int:
        """Return its elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Return its bytes."""
        return self.size * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements, counted in the order of rows: (stop - start,), C-contiguous."""

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all elements in order, a few at a time."""
        for start in range(0, self.size, BLOCK_ELEMENTS):
            yield self.read(start, min(start + BLOCK_ELEMENTS, self.size))

    def array(self) -> NDArray[Any]:
        """Return a new array of all elements."""
        whole: NDArray[Any] = np.empty(self.size, self.dtype)
        position = 0
        for block in self.blocks():
            whole[position : position + block.size] = block
            position += block.size
        return whole.reshape(self.shape)

    def is_finite(self) -> bool:
        """Tell whether no element is infinite or NaN."""
        return all(np.isfinite(block.astype(np.float32)).all() for block in self.blocks())


class ArrayTensor(Tensor):
    """A tensor in memory."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = np.asarray(values)
        self.dtype, self.shape, self.held = values.dtype, values.shape, values.nbytes

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`."""
        return np.ascontiguousarray(self.values).reshape(-1)[start:stop]


class StoredTensor(Tensor):
    """A tensor in a safetensors file, which stays open as long as this is there.

    Raises
    ------
    FormatError
        If numpy has no such dtype.
    """

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file = file
        self._start = file.tensors[name].start
        self.dtype, self.shape = file.dtype(name), file.tensors[name].shape

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`.

        Raises
        ------
        ChangedError
            If the file was written to since it was opened.
        """
        size = self.dtype.itemsize
        data = self._file.read_bytes((stop - start) * size, self._start + start * size)
        self._file.check_unchanged(by_path=False)
        return np.frombuffer(data, self.dtype)


class CastTensor(Tensor):
    """A tensor in another dtype, rounded to nearest even."""

    def __init__(self, tensor: Tensor, dtype: np.dtype[Any]) -> None:
        self._tensor = tensor
        self.dtype, self.shape, self.held = dtype, tensor.shape, tensor.held

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`."""
        with np.errstate(over="ignore"):  # callers check what is finite
            return self._tensor.read(start, stop).astype(self.dtype)


class ComputedTensor(Tensor):
    """A matrix whose elements a function computes, some columns of some rows at a time.

    Parameters
    ----------
    dtype : numpy.dtype
    shape : (int, int)
    compute : callable
        Takes rows and columns, both (start, stop), and returns these elements.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        shape: tuple[int, int],
        compute: Callable[[tuple[int, int], tuple[int, int]], NDArray[Any]],
    ) -> None:
        self.dtype, self.shape = dtype, shape
        self._compute = compute

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`."""
        length = self.shape[1]
        first, last = start // length, -(-stop // length)
        start, stop = start - first * length, stop - first * length
        if last - first == 1:
            return np.ascontiguousarray(self._compute((first, last), (start, stop))).reshape(-1)
        values = self._compute((first, last), (0, length))
        return np.ascontiguousarray(values).reshape(-1)[start:stop]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all elements in order: whole rows, or parts of one."""
        step = max(1, BLOCK_ELEMENTS // max(1, self.shape[1])) * self.shape[1]
        for start in range(0, self.size, max(1, step)):
            stop = min(start + step, self.size)
            for begin in range(start, stop, BLOCK_ELEMENTS):
                yield self.read(begin, min(begin + BLOCK_ELEMENTS, stop))


class StackedTensor(Tensor):
    """Tensors of one dtype, one behind the other."""

    def __init__(self, parts: Sequence[Tensor], shape: tuple[int, ...]) -> None:
        self._parts = parts
        self.dtype, self.shape = parts[0].dtype, shape
        self.held = sum(part.held for part in parts)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements; see :meth:`Tensor.read`."""
        pieces = []
        for part in self._parts:
            if stop > 0 and start < part.size:
                pieces.append(part.read(max(0, start), min(stop, part.size)))
            start, stop = start - part.size, stop - part.size
        return np.concatenate(pieces)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all elements in order, those of one tensor at a time."""
        for part in self._parts:
            yield from part.blocks()


def tensor_of(values: NDArray[Any] | Tensor) -> Tensor:
    """Return a tensor for an array; one that is a tensor stays as it is."""
    return values if isinstance(values, Tensor) else ArrayTensor(values)


class TensorMapping(MutableMapping[str, "NDArray[Any]"]):
    """Tensors by name that are read on each access.

    Parameters
    ----------
    tensors : mapping from names to arrays or :class:`Tensor`

    Attributes
    ----------
    tensors : dict
        Name -> :class:`Tensor`.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any] | Tensor]) -> None:
        given = tensors.tensors if isinstance(tensors, TensorMapping) else tensors
        self.tensors: dict[str, Tensor] = {
            name: tensor_of(values) for name, values in given.items()
        }

    def __repr__(self) -> str:
        return f"<TensorMapping of {len(self)}: {printable(', '.join(self))}>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self.tensors[name]
        return tensor.values if isinstance(tensor, ArrayTensor) else tensor.array()

    def __setitem__(self, name: str, values: NDArray[Any]) -> None:
        self.tensors[name] = tensor_of(values)

    def __delitem__(self, name: str) -> None:
        del self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
