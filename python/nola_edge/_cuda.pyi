"""The CUDA kernels, where they were built; addresses are those of device memory."""

from collections.abc import Sequence

_Extent = tuple[int, int]
#: basis, seed, stream, num_basis, shape, rows, cols
_Matrix = tuple[str, int, int, int, _Extent, _Extent, _Extent]

#: A matrix, and the addresses of what is read and what is written.
_Task = tuple[_Matrix, int, int]

compiler: str
architectures: list[int]

def expand_at(
    matrix: _Matrix, coefficients: int, out: int, dtype: str, device: int, queue: int
) -> None: ...
def project_workspace(matrix: _Matrix) -> int: ...
def project_at(
    matrix: _Matrix, grad: int, dtype: str, out: int, workspace: int, device: int, queue: int
) -> None: ...
def merge_at(
    base: int,
    out: int,
    dtype: str,
    shape: tuple[int, int],
    stride: int,
    lora_b: int,
    lora_a: int,
    a_stride: int,
    rank: int,
    scaling: float,
    not_finite: int,
    device: int,
    queue: int,
) -> None: ...
def plan_expand(tasks: Sequence[_Task]) -> bytes: ...
def expand_group(
    basis: str, seed: int, dtype: str, table: bytes, on_device: int, device: int, queue: int
) -> None: ...
def plan_project(tasks: Sequence[_Task]) -> tuple[bytes, int]: ...
def project_group(
    basis: str,
    seed: int,
    dtype: str,
    table: bytes,
    on_device: int,
    workspace: int,
    device: int,
    queue: int,
) -> None: ...
def plan_merge(
    dtype: str,
    # base, out, shape, stride, lora_b, lora_a, a_stride, rank, scaling
    tasks: Sequence[tuple[int, int, _Extent, int, int, int, int, int, float]],
) -> bytes: ...
def merge_group(
    dtype: str, table: bytes, on_device: int, not_finite: int, device: int, queue: int
) -> None: ...
