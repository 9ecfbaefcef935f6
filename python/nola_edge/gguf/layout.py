"""Where everything lies in a GGUF file some of whose tensors get another type."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nola_edge.files.gguf import padded, tensor_bytes
from nola_edge.files.gguf_types import TENSOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nola_edge.files.gguf import GgufFile

    Part = tuple[int, int] | bytes | str


class Layout:
    """The offsets of an output with the tensors of a base, in the same order, and its entries.

    Metadata stays as it is, and is copied. An entry's type and offset have a fixed size, so that
    nothing else changes in the header.

    Parameters
    ----------
    base : GgufFile
    kinds : mapping
        Name -> type, of the tensors that are rewritten.

    Attributes
    ----------
    infos : bytes
        The entries of the tensors, up to the first tensor; they begin at the base's
        ``infos_start``.
    offsets : dict
        Name -> position of the tensor in the output.
    size : int
        Bytes of the output.
    """

    def __init__(self, base: GgufFile, kinds: Mapping[str, str]) -> None:
        self._base = base
        self._kinds = kinds
        infos = bytearray(min(base.data_start, base.size) - base.infos_start)
        base.read_into(memoryview(infos), base.infos_start)
        self.offsets: dict[str, int] = {}
        stop = base.data_start
        for name, info in base.tensors.items():
            start = padded(stop, base.alignment)
            kind = kinds.get(name, info.dtype)
            position = base.type_positions[name] - base.infos_start
            struct.pack_into(
                "<IQ", infos, position, TENSOR_TYPES[kind].code, start - base.data_start
            )
            self.offsets[name] = start
            stop = start + tensor_bytes(kind, info.shape)
        self.infos = bytes(infos)
        self.size = padded(stop, base.alignment)

    def untouched(self) -> Iterator[tuple[int, int, int]]:
        """Yield (begin, end, offset): bytes of the base, and where they go; neighbours joined."""
        yield 0, self._base.infos_start, 0
        begin = end = offset = -1
        for name, info in self._base.tensors.items():
            if name in self._kinds:
                continue
            target = self.offsets[name]
            # The padding between two tensors that stay goes with them.
            if (
                begin < 0
                or padded(end, self._base.alignment) != info.start
                or (target - offset != info.start - begin)
            ):
                if begin < end:
                    yield begin, end, offset
                begin, offset = info.start, target
            end = info.stop
        if begin < end:
            yield begin, end, offset

    def parts(self) -> Iterator[tuple[int, Part]]:
        """Yield all that the output is made of, in order, each with its offset.

        That is a range of the base, (begin, end), which is copied; bytes; or the name of a tensor
        that is rewritten.
        """
        ranges: list[tuple[int, int, Part]] = [
            (offset, end - begin, (begin, end)) for begin, end, offset in self.untouched()
        ]
        ranges.append((self._base.infos_start, len(self.infos), self.infos))
        for name, kind in self._kinds.items():
            nbytes = tensor_bytes(kind, self._base.tensors[name].shape)
            ranges.append((self.offsets[name], nbytes, name))
        position = 0
        for offset, nbytes, part in sorted(ranges, key=lambda found: found[0]):
            if position < offset:
                yield position, bytes(offset - position)
            if nbytes:
                yield offset, part
            position = max(position, offset + nbytes)
        if position < self.size:
            yield position, bytes(self.size - position)

    def padding(self) -> Iterator[tuple[int, int, int | None]]:
        """Yield (begin, end, source): bytes behind a tensor, and where the base has them.

        A source of None stands for zeros.
        """
        copied = [(to, to + end - begin, begin) for begin, end, to in self.untouched()]
        starts = [*list(self.offsets.values())[1:], self.size]
        for (name, start), stop in zip(self.offsets.items(), starts, strict=True):
            kind = self._kinds.get(name, self._base.tensors[name].dtype)
            begin = start + tensor_bytes(kind, self._base.tensors[name].shape)
            source = [at + begin - to for to, end, at in copied if to <= begin and stop <= end]
            yield begin, stop, source[0] if source else None
