"""The numbers of torch's generator on a CPU.

- The engine is MT19937 (Matsumoto and Nishimura, 1998), seeded by ``init_genrand`` with the lower
  32 bits of the seed (``aten/src/ATen/core/MT19937RNGEngine.h``).
- An element takes one 32-bit word, in the tensor's order, whatever its size or dtype:
  ``(word mod 2**24) / 2**24``, mapped to the bounds in float32 (``uniform_real`` in
  ``aten/src/ATen/core/TransformationHelper.h``). The mapping has one rounding where the kernel was
  compiled with a fused multiply-add (AVX2, AVX-512, aarch64), two elsewhere; between -1 and 1
  there is no difference.
- 16-bit numbers are these rounded to nearest even, with the upper bound turned into the lower one,
  as torch 2.13 does. Older versions drew 8 or 11 bits only, and are not followed.

Compared with torch 2.13 bit for bit, by tests/integrations/test_public_nola.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.adapters.public_nola.uniform import uniform
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_BLOCK = 1 << 16
_UNIT = np.float32(2.0**-24)


class CpuGenerator:
    """torch's generator on a CPU after ``torch.manual_seed(seed)``.

    Parameters
    ----------
    seed : int
        ``0 <= seed < 2**64``.
    fused : bool
        Whether torch's kernel had a fused multiply-add.
    """

    def __init__(self, seed: int, *, fused: bool = True) -> None:
        # numpy promises never to change this stream.
        self._engine = np.random.RandomState(seed & 0xFFFFFFFF)
        self._fused = fused

    def skip(self, size: int) -> None:
        """Pass over a draw of this many elements."""
        for _ in self._words(size):
            pass

    def uniform(self, size: int, bound: float, dtype: str = "F32") -> Iterator[NDArray[np.float32]]:
        """Yield the elements of one ``uniform_(-bound, bound)``, block by block.

        A draw must be taken to its end before the next one begins.
        """
        for words in self._words(size):
            unit = (words & np.uint32(0xFFFFFF)).astype(np.float32) * _UNIT
            yield uniform(unit, bound, dtype, fused=self._fused)

    def _words(self, size: int) -> Iterator[NDArray[np.uint32]]:
        for start in range(0, size, _BLOCK):
            check_stopped()
            count = min(_BLOCK, size - start)
            yield self._engine.randint(0, 1 << 32, size=count, dtype=np.uint32)

    def at(
        self, elements: NDArray[np.int64], size: int, bound: float, dtype: str = "F32"
    ) -> NDArray[np.float32]:
        """Return single elements, in ascending order, of the next draw, which ends with them."""
        values = np.empty(elements.size, np.float32)
        start = 0
        for block in self.uniform(int(elements[-1]) + 1, bound, dtype):
            low, high = np.searchsorted(elements, (start, start + block.size))
            values[low:high] = block[elements[low:high] - start]
            start += block.size
        return values
