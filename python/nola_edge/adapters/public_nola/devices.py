"""Where a basis was drawn: torch's generator on a CPU, or on a GPU of some size."""

from __future__ import annotations

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
_MAX_MULTIPROCESSORS = 1024
_MAX_THREADS = 4096
_IN_TORCH = "torch.cuda.get_device_properties(0) has both"


@dataclass(frozen=True)
class DrawnOn:
    """The generator that drew a basis.

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


def drawn_on_of(
    device: str | None,
    gpu: str | None,
    multiprocessors: int | None,
    threads_per_multiprocessor: int | None,
    older_torch: bool,
) -> DrawnOn | None:
    """Check what a caller says of the device; None if nothing was said.

    Raises
    ------
    ArgumentError
        If something is out of range, contradicts the rest, or is missing.
    """
    if device not in (None, "cpu", "cuda"):
        raise ArgumentError(f"is {printable(repr(device))}, not 'cpu' or 'cuda'", field="drawn_on")
    size = (multiprocessors, threads_per_multiprocessor)
    if gpu is not None:
        gpu = gpu.lower()
        if gpu not in GPUS:
            raise ArgumentError(
                f"{printable(repr(gpu))} is unknown; known are {', '.join(GPUS)}; for another give "
                f"multiprocessors and threads_per_multiprocessor, {_IN_TORCH}",
                field="gpu",
            )
        if size != (None, None):
            raise ArgumentError("says how large the GPU is; leave out its sizes", field="gpu")
        size = GPUS[gpu]
    if size == (None, None):
        if device == "cuda":
            raise ArgumentError(
                "on a GPU the basis depends on its size; give gpu, or multiprocessors and "
                f"threads_per_multiprocessor, {_IN_TORCH}",
                field="drawn_on",
            )
        if older_torch:
            raise ArgumentError("is about 16-bit numbers drawn on a GPU", field="older_torch")
        return None if device is None else DrawnOn("cpu")
    if device == "cpu":
        raise ArgumentError("is 'cpu', but a GPU's size is given", field="drawn_on")
    if None in size:
        raise ArgumentError(
            f"goes with threads_per_multiprocessor; {_IN_TORCH}", field="multiprocessors"
        )
    return DrawnOn("cuda", _checked_blocks(*size), older=older_torch)


def _checked_blocks(multiprocessors: int | None, threads: int | None) -> int:
    limits = (
        ("multiprocessors", multiprocessors, 1, _MAX_MULTIPROCESSORS),
        ("threads_per_multiprocessor", threads, THREADS_PER_BLOCK, _MAX_THREADS),
    )
    sizes = []
    for field, value, low, high in limits:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ArgumentError(
                f"is {printable(repr(value))}, must be {low}..{high}; {_IN_TORCH}", field=field
            )
        sizes.append(value)
    return _blocks(sizes[0], sizes[1])
