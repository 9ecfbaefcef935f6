"""Matrices that stay in their file, of which parts are read when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.files.tensors import StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nola_edge.ops import Range


class StoredMatrix(StoredTensor):
    """A matrix in a safetensors file, which stays open as long as this is there."""

    def window(self, rows: Range | None, cols: Range | None) -> NDArray[np.float32]:
        """Read some columns of some rows, widened to float32.

        Parameters
        ----------
        rows, cols : (start, stop), optional
            Default: all.

        Returns
        -------
        (rows, cols) float32

        Raises
        ------
        ChangedError
            If the file was written to since it was opened.
        """
        height, width = self.shape
        (top, bottom), (left, right) = rows or (0, height), cols or (0, width)
        shape = (bottom - top, right - left)
        if shape[1] == width:
            values = self.read(top * width, bottom * width)
            return values.reshape(shape).astype(np.float32)
        window = np.empty(shape, np.float32)
        for row in range(*(rows or (0, height))):
            window[row - top] = self.read(row * width + left, row * width + right)
        return window
