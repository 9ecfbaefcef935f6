"""The memory of tensors: its bytes, and the file behind it where a loader has only mapped that.

Loaders of safetensors map files and hand out views. Whoever works on such a tensor block by block
had better read the file: pages of the mapping would come into memory one fault at a time, and stay
in it beside the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from nola_edge.files.input_file import InputFile
from nola_edge.merge.overlaps import array_extent, find_overlaps, have_common_element

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from nola_edge.merge.overlaps import Extent

_MAPS = Path("/proc/self/maps")
_SAMPLE = 64


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, writable."""
    view: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return view


def is_resident(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is its elements: neither on the meta device nor yet to be made.

    Nor a subclass that keeps something else, as quantised weights do; a DTensor counts.
    """
    if is_lazy(tensor) or tensor.is_meta:
        return False
    return type(tensor.data) is torch.Tensor or hasattr(tensor, "device_mesh")


def find_shared(parameters: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Find parameters that are another one too, whole or in part.

    Parameters
    ----------
    parameters : mapping from name to Tensor or DTensor
        On any device, meta too, where only a tensor under two names can be told.

    Returns
    -------
    dict
        Name of each of them -> another name that holds some of the same memory.
    """
    places = {name: _place(tensor) for name, tensor in parameters.items()}
    extents = {name: extent for name, (extent, _) in places.items()}

    def have_common(one: str, other: str) -> bool:
        first, second = places[one][1], places[other][1]
        return first is None or second is None or have_common_element(first, second)

    return find_overlaps(extents, have_common)


def _place(tensor: torch.Tensor) -> tuple[Extent, NDArray[Any] | None]:
    """Return where a tensor lies, and an array of the same addresses.

    Nobody may look at the array's elements: the memory can be another device's.
    """
    whole: Any = tensor
    local: torch.Tensor = whole.to_local() if hasattr(tensor, "device_mesh") else tensor
    if not is_resident(local) or not local.numel():
        return ("object", id(tensor), id(tensor) + 1), None
    if not local.data_ptr():  # its memory was given back for a while, and may be any
        return (str(local.device), 0, 1), None
    place = np.asarray(_Addresses(local))
    return (str(local.device), *array_extent(place)[1:]), place


class _Addresses:
    """A tensor's addresses, in the form in which numpy takes them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(size * step for step in tensor.stride()),
            "typestr": f"|V{size}",
        }


@dataclass(frozen=True)
class _Mapping:
    start: int
    stop: int
    offset: int
    inode: int
    path: str


def _agree(tensor: torch.Tensor, file: InputFile, offset: int) -> bool:
    """Compare the ends of a tensor with the file: a private mapping may have been written to."""
    view = byte_view(tensor)
    for begin in (0, max(0, len(view) - _SAMPLE)):
        stored = bytearray(view[begin : begin + _SAMPLE])
        if offset + begin + len(stored) > file.size:
            return False
        file.read_into(memoryview(stored), offset + begin)
        if stored != view[begin : begin + _SAMPLE]:
            return False
    return True


class MappedFiles:
    """Some files, and where this process has mapped them (Linux; elsewhere nothing is found).

    Parameters
    ----------
    paths : iterable of path
        Only tensors in these files are found.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._paths = {str(Path(path).resolve()) for path in paths}
        self._mappings: list[_Mapping] = []
        self._files: dict[str, InputFile] = {}

    def find(self, tensor: torch.Tensor) -> tuple[InputFile, int] | None:
        """Return the file that holds a tensor's memory, and the tensor's offset in it.

        Parameters
        ----------
        tensor : torch.Tensor
            Contiguous, on the CPU, and not written to since it was mapped: only its ends are
            compared with the file.

        Returns
        -------
        (InputFile, int) or None
            None where the memory is not of one of the files.
        """
        start, nbytes = tensor.data_ptr(), tensor.nbytes
        mapping = self._mapping(start, start + nbytes)
        if mapping is None:
            self._mappings = self._read()
            mapping = self._mapping(start, start + nbytes)
        if mapping is None:
            return None
        file = self._files.get(mapping.path)
        if file is None:
            file = self._files[mapping.path] = InputFile(mapping.path)
        offset = mapping.offset + start - mapping.start
        if os.fstat(file.fd).st_ino != mapping.inode or not _agree(tensor, file, offset):
            return None
        return file, offset

    def _mapping(self, start: int, stop: int) -> _Mapping | None:
        for mapping in self._mappings:
            if mapping.start <= start and stop <= mapping.stop:
                return mapping
        return None

    def _read(self) -> list[_Mapping]:
        """Parse the kernel's list: ``start-stop permissions offset device inode path``."""
        try:
            lines = _MAPS.read_text(errors="surrogateescape").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in self._paths:
                start, stop = (int(text, 16) for text in fields[0].split("-"))
                offset, inode = int(fields[2], 16), int(fields[4])
                found.append(_Mapping(start, stop, offset, inode, fields[5]))
        return found

    def check_unchanged(self) -> None:
        """Compare the files that were read with what they were.

        Raises
        ------
        ChangedError
        """
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        """Close the files; what was found stays valid as memory."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._mappings.clear()
