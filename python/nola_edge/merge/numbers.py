"""The numbers that a dtype has: values as they are stored, and how far apart they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from nola_edge.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bits of the fraction, and the exponent of the smallest normal number.
_FORMATS = {"F32": (23, -126), "F16": (10, -14), "BF16": (7, -126)}
#: Bits of a float32: those of a power of two, without sign and fraction.
_EXPONENT = np.uint32(0x7F800000)


class Numbers(Protocol):
    """The numbers of a dtype."""

    @property
    def unit(self) -> str:
        """Return what neighbours are apart: ``"ulp"``, or ``"step"`` of a quantised type."""

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the values of rows, (n, elements of a row), new and C-contiguous.

        Parameters
        ----------
        rows : (n, bytes of a row) uint8
        """

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return rows of the nearest numbers, (n, bytes of a row); too large ones are infinite.

        Parameters
        ----------
        values : (n, elements of a row) float32
        """

    def spacing(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the distance of neighbouring numbers at each element, above 0.

        Parameters
        ----------
        rows : (n, bytes of a row) uint8
        """


class FloatNumbers:
    """The numbers of a float type.

    Attributes
    ----------
    dtype : {"F32", "F16", "BF16"}
    """

    unit = "ulp"

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the values of rows; see :meth:`Numbers.decode`."""
        return rows.view(numpy_dtype(self.dtype)).astype(np.float32, order="C")

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return rows of the nearest numbers; see :meth:`Numbers.encode`."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.ascontiguousarray(values.astype(numpy_dtype(self.dtype))).view(np.uint8)

    def spacing(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the ulp of each element; see :meth:`Numbers.spacing`."""
        fraction, smallest = _FORMATS[self.dtype]
        powers = (self.decode(rows).view(np.uint32) & _EXPONENT).view(np.float32)
        ulps: NDArray[np.float32] = np.maximum(powers, np.float32(2.0**smallest))
        ulps *= np.float32(2.0**-fraction)
        return ulps
