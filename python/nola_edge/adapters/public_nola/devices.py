"""Where random matrices were drawn: torch's generator on a CPU, or on a GPU of some size."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nola_edge.adapters.public_nola.cpu_generator import CpuGenerator
from nola_edge.adapters.public_nola.cuda_generator import THREADS_PER_BLOCK, CudaGenerator
from nola_edge.errors import ArgumentError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Multiprocessors and resident threads of each, by name. From NVIDIA's data sheets and the CUDA
#: programming guide (technical specifications per compute capability); A10G, L40, L40S and H100
#: PCIe as measured in https://github.com/pytorch/pytorch/issues/196613, L4 and T4 in issue 194676.
GPUS = {
    "a10": (72, 1536),
    "a10g": (80, 1536),
    "a100": (108, 2048),
    "a40": (84, 1536),
    "h100-pcie": (114, 2048),
    "h100-sxm": (132, 2048),
    "h200": (132, 2048),
    "l4": (58, 1536),
    "l40": (142, 1536),
    "l40s": (142, 1536),
    "p100": (56, 2048),
    "rtx-2080-ti": (68, 1024),
    "rtx-3090": (82, 1536),
    "rtx-4090": (128, 1536),
    "rtx-8000": (72, 1024),
    "rtx-a6000": (84, 1536),
    "t4": (40, 1024),
    "v100": (80, 2048),
}
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII)
_OLDER = ",older-torch"
_MOST = (1024, 4096)


@dataclass(frozen=True)
class DrawnOn:
    """The generator that drew random matrices.

    Attributes
    ----------
    device : {"cpu", "cuda"}
    blocks : int
        On a GPU, the blocks of 256 threads that it holds at a time.
    fused : bool
        On a CPU, whether torch's kernel had a fused multiply-add.
    older : bool
        On a GPU, see :class:`~nola_edge.adapters.public_nola.cuda_generator.CudaGenerator`.
    """

    device: str
    blocks: int = 0
    fused: bool = True
    older: bool = False

    @staticmethod
    def parse(text: str) -> DrawnOn:
        """Read what a user says.

        Parameters
        ----------
        text : str
            ``"cpu"``, a GPU by its name in :data:`GPUS` or by its size, ``"84x1536"``; behind a
            GPU ``",older-torch"``, for 16-bit numbers as torch drew them before it excluded the
            upper bound.

        Raises
        ------
        ArgumentError
        """
        place = text.lower().removesuffix(_OLDER)
        older = place != text.lower()
        if place == "cpu" and not older:
            return DrawnOn("cpu")
        found = _SIZE.fullmatch(place)
        size = (int(found[1]), int(found[2])) if found else GPUS.get(place)
        if size is None or not (
            1 <= size[0] <= _MOST[0] and THREADS_PER_BLOCK <= size[1] <= _MOST[1]
        ):
            raise ArgumentError(
                f"is {printable(repr(text))}; give cpu, or the GPU by its name "
                f"({', '.join(GPUS)}) or by its size, such as 84x1536 for 84 multiprocessors of "
                "1536 threads: torch.cuda.get_device_properties(0) has both",
                field="drawn_on",
                value=text,
            )
        return DrawnOn("cuda", _blocks(*size), older=older)

    def generator(self, seed: int) -> CpuGenerator | CudaGenerator:
        """Return the generator as ``torch.manual_seed(seed)`` leaves it."""
        if self.device == "cpu":
            return CpuGenerator(seed, fused=self.fused)
        return CudaGenerator(seed, self.blocks, older=self.older)

    def alike(self) -> Iterator[DrawnOn]:
        """Yield this one, and others that the same words of the user may mean."""
        yield self
        if self.device == "cpu":
            yield replace(self, fused=not self.fused)

    def __str__(self) -> str:
        """Describe it to the user."""
        if self.device == "cpu":
            return "a CPU"
        names = [name for name, size in GPUS.items() if _blocks(*size) == self.blocks]
        known = f" ({', '.join(names)})" if names else ""
        return f"a GPU of {self.blocks} blocks{known}{', older torch' if self.older else ''}"


def _blocks(multiprocessors: int, threads: int) -> int:
    return multiprocessors * (threads // THREADS_PER_BLOCK)
