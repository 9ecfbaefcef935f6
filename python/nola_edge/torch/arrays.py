"""Numpy's arrays and torch's tensors on the same memory, bfloat16 included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nola_edge.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


def array_view(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the memory of a tensor on the CPU as an array, of any strides."""
    if tensor.dtype is not torch.bfloat16:
        return tensor.detach().numpy()
    bits: NDArray[Any] = tensor.detach().view(torch.uint16).numpy()
    return bits.view(numpy_dtype("BF16"))


def tensor_view(values: NDArray[Any]) -> torch.Tensor:
    """Return the memory of an array as a tensor, or of a copy where that is read-only."""
    array = values if values.flags.writeable else np.array(values)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
