"""What the header of a file of tensors says of one of them, in whatever format."""

from __future__ import annotations

import math
from typing import NamedTuple


class TensorInfo(NamedTuple):
    """One entry of a header.

    Attributes
    ----------
    name, dtype : str
    shape : tuple of int
    start, stop : int
        Byte offsets in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)
