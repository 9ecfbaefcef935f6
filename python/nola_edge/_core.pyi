from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")

__version__: str
compiler: str
openmp: bool

def stream_id(module: str, factor: str) -> int: ...
def gain(basis: str, num_basis: int) -> float: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def expand(
    coefficients: NDArray[Any],
    seed: int,
    stream: int,
    shape: tuple[int, int],
    basis: str,
    rows: tuple[int, int],
    cols: tuple[int, int],
    num_threads: int,
) -> NDArray[np.float32]: ...
def project(
    grad: NDArray[Any],
    seed: int,
    stream: int,
    num_basis: int,
    shape: tuple[int, int],
    basis: str,
    rows: tuple[int, int],
    cols: tuple[int, int],
    num_threads: int,
) -> NDArray[np.float32]: ...
def merge(
    weight: NDArray[Any],
    lora_b: NDArray[Any],
    lora_a: NDArray[Any],
    scaling: float,
    num_threads: int,
) -> bool: ...
def expand_at(
    coefficients: int,
    num_basis: int,
    seed: int,
    stream: int,
    shape: tuple[int, int],
    basis: str,
    rows: tuple[int, int],
    cols: tuple[int, int],
    out: int,
    num_threads: int,
) -> None: ...
def project_at(
    grad: int,
    num_basis: int,
    seed: int,
    stream: int,
    shape: tuple[int, int],
    basis: str,
    rows: tuple[int, int],
    cols: tuple[int, int],
    out: int,
    num_threads: int,
) -> None: ...
def merge_at(
    weight: int,
    dtype: str,
    shape: tuple[int, int],
    lora_b: int,
    lora_a: int,
    rank: int,
    scaling: float,
    num_threads: int,
) -> bool: ...
def scale_at(values: int, count: int, factor: float) -> None: ...
def in_specified_environment(work: Callable[[], _T]) -> _T: ...
def compiled_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def active_isa() -> str: ...
def force_isa(name: str) -> None: ...
