"""The numbers of torch's generator on an NVIDIA GPU.

From ``aten/src/ATen/native/cuda/DistributionTemplates.h`` and cuRAND's device headers:

- A draw of n elements runs on ``min(ceil(n / 256), blocks)`` blocks of 256 threads, `blocks` being
  the multiprocessors of the GPU times their threads divided by 256 (``calc_execution_policy``).
  Beyond that size the numbers depend on the GPU.
- Thread i takes Philox4x32-10 with the seed as key and the counter ``(offset / 4 + t, 0, i, 0)`` in
  turn t (``curand_init(seed, i, offset)``, ``curand_uniform4``). With T threads, word w of that
  block is element ``4 T t + T w + i``.
- A word x becomes ``float(x) * 2**-32 + 2**-33`` in (0, 1], is mapped to the bounds with a fused
  multiply-add, rounded to the dtype, and then the upper bound is turned into the lower one. Before
  https://github.com/pytorch/pytorch/issues/96947 was answered, only 1 was turned into 0, in
  float32: one in a thousand bfloat16 numbers differs, no float32 number does.
- The next draw's offset is 4 times the turns of this one higher.
- A tensor of more than 2**31 - 1 bytes is drawn in parts; such a draw is not followed here.

Checked, without a GPU, against published outputs: Random123's known answers of Philox;
``torch.rand(10, device="cuda")`` twice after seed 0 (first and second draw); and all 36 numbers
that a public script prints of ``torch.rand(10000, 10000, device="cuda:0")`` after seed 0, which
fit a GPU of 160 blocks, as a Tesla T4 is, and no other number of blocks up to 2500. The same
mapping was found to be exact on A10G, L40, L40S and H100 by
https://github.com/pytorch/pytorch/issues/196613. 16-bit draws were not compared with a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.adapters.public_nola.philox import philox_words
from nola_edge.adapters.public_nola.uniform import uniform
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

THREADS_PER_BLOCK = 256
_UNROLL = 4
_CHUNK = 1 << 14
_MAX_BYTES = 2**31 - 1


def threads_of(size: int, blocks: int) -> int:
    """Return how many threads draw a tensor of this many elements."""
    return THREADS_PER_BLOCK * min(-(-size // THREADS_PER_BLOCK), blocks)


def drawn_at_once(size: int, itemsize: int) -> bool:
    """Tell whether torch draws a tensor with one kernel (its 32-bit indexing of bytes)."""
    return (size - 1) * itemsize + 1 <= _MAX_BYTES


class CudaGenerator:
    """torch's generator on a GPU after ``torch.manual_seed``.

    Parameters
    ----------
    seed : int
        ``0 <= seed < 2**64``.
    blocks : int
        Blocks of 256 threads that the GPU holds at a time.
    older : bool
        Follow torch from before the upper bound of 16-bit numbers was excluded.
    """

    def __init__(self, seed: int, blocks: int, *, older: bool = False) -> None:
        self._seed = seed
        self._blocks = blocks
        self._older = older
        self._turn = 0

    def skip(self, size: int) -> None:
        """Pass over a draw of this many elements."""
        if size:
            self._turn += -(-size // (_UNROLL * threads_of(size, self._blocks)))

    def uniform(self, size: int, bound: float, dtype: str = "F32") -> Iterator[NDArray[np.float32]]:
        """Yield the elements of one ``uniform_(-bound, bound)``, block by block.

        A draw must be taken to its end before the next one begins.
        """
        threads = threads_of(size, self._blocks)
        for start in range(0, size, _UNROLL * threads):
            words = self._words(threads, min(threads, size - start))[: size - start]
            self._turn += 1
            for begin in range(0, words.size, _CHUNK):
                yield self._mapped(words[begin : begin + _CHUNK], bound, dtype)

    def _words(self, threads: int, needed: int) -> NDArray[np.uint32]:
        """Return what the threads draw in a turn, at least those of the first ones."""
        words = np.empty((_UNROLL, threads), np.uint32)
        for begin in range(0, needed, _CHUNK):
            check_stopped()
            indices = np.arange(begin, min(begin + _CHUNK, needed), dtype=np.uint64)
            drawn = philox_words((self._turn, 0, indices, 0), self._seed)
            words[:, begin : begin + indices.size] = drawn
        return words.reshape(-1)

    def at(
        self, elements: NDArray[np.int64], size: int, bound: float, dtype: str = "F32"
    ) -> NDArray[np.float32]:
        """Return single elements of what the next draw of `size` elements will give."""
        threads = threads_of(size, self._blocks)
        turn, place = np.divmod(elements, _UNROLL * threads)
        word, thread = np.divmod(place, threads)
        words = philox_words((turn + self._turn, 0, thread, 0), self._seed)
        return self._mapped(words[word, np.arange(elements.size)], bound, dtype)

    def _mapped(self, words: NDArray[np.uint32], bound: float, dtype: str) -> NDArray[np.float32]:
        unit = words.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
        if self._older:
            unit[unit == 1] = 0
        return uniform(unit, bound, dtype, upper_bound=self._older)
