"""Recorded numbers of a basis, compared with what the generator gives.

The GPT-2 and LLaMA code records none. A user who still has the machine can: the first number of
each basis matrix, ``basis[:, 0, 0]``, k numbers under the factor's name with ``.first``. They are
spread over the whole draw, so that they tell one GPU from another wherever the basis does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.public_nola.cuda_generator import THREADS_PER_BLOCK
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import AdapterError, MismatchError
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.contents import Factor

_SUFFIX = ".first"
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)
#: More than any GPU has: 256 multiprocessors of 2048 threads.
_MAX_BLOCKS = 2048
_SAMPLE = 64
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def how_to_record(factors: list[Factor], device: str) -> str | None:
    """Return Python that records the largest basis, on the machine that can draw it.

    None if that basis has a name that would mean something to a shell.
    """
    factor = max(factors, key=lambda f: f.drawn)
    if _PLAIN.fullmatch(factor.name) is None:
        return None
    rows, cols = factor.shape
    return (
        "import torch, safetensors.torch as st; "
        f"torch.manual_seed({factor.seed}); "
        f"w = torch.empty({factor.num_basis}, {rows}, {cols}, "
        f"dtype=torch.{_TORCH[factor.dtype]}, device='{device}').uniform_(-1, 1); "
        f"st.save_file({{'{factor.name}{_SUFFIX}': w[:, 0, 0].cpu().contiguous()}}, "
        "'first.safetensors')"
    )


def check_records(path: str | Path, factors: list[Factor], drawn_on: DrawnOn) -> tuple[int, bool]:
    """Compare recorded numbers with the generator's.

    Parameters
    ----------
    path : path
        A safetensors file of tensors ``<factor's name>.first``, k numbers each.
    factors : list of Factor
    drawn_on : DrawnOn

    Returns
    -------
    int
        How many bases were compared.
    bool
        Whether they would differ on a GPU of another size, if any basis of the checkpoint does.

    Raises
    ------
    MismatchError
        If a number differs; the message says which devices give it, if any.
    AdapterError
        If a tensor belongs to no factor, or to another form of it.
    """
    by_name = {factor.name + _SUFFIX: factor for factor in factors}
    with SafetensorsFile.open(path) as file:
        if not file.tensors:
            raise AdapterError("holds no recorded numbers", file=path)
        for name in file.tensors:
            _compare(file, name, by_name, drawn_on)
        file.check_unchanged()
        wave = THREADS_PER_BLOCK * drawn_on.blocks  # beyond it a basis depends on the GPU
        last = max(int(_elements(by_name[name])[-1]) for name in file.tensors)
        return len(file.tensors), last >= wave or max(f.drawn for f in factors) <= wave


def _compare(
    file: SafetensorsFile, name: str, by_name: Mapping[str, Factor], drawn_on: DrawnOn
) -> None:
    where: dict[str, Any] = {"file": file.path, "field": name}
    factor, info = by_name.get(name), file.tensors[name]
    if factor is None:
        raise AdapterError(
            f"does not name a basis of the checkpoint, such as {next(iter(by_name))}", **where
        )
    if info.dtype not in MERGEABLE or info.shape != (factor.num_basis,):
        raise AdapterError(
            f"is {info.dtype} {list(info.shape)}, must be {factor.dtype} [{factor.num_basis}]: one "
            "number of each matrix",
            **where,
        )
    recorded = file.read(name).astype(np.float32)
    values = _values(drawn_on, factor, _elements(factor))
    bad = np.flatnonzero(values != recorded)
    if bad.size:
        raise MismatchError(
            f"number {bad[0]} is {recorded[bad[0]]:.6g}; a basis drawn on {drawn_on} has "
            f"{values[bad[0]]:.6g} there. {_what_fits(factor, recorded)}",
            **where,
        )


def _elements(factor: Factor) -> NDArray[np.int64]:
    """Return the flat indices of the recorded numbers."""
    return np.arange(factor.num_basis, dtype=np.int64) * factor.size


def _values(drawn_on: DrawnOn, factor: Factor, elements: NDArray[np.int64]) -> NDArray[np.float32]:
    generator = drawn_on.generator(factor.seed)
    return generator.at(elements, factor.drawn, factor.bound, factor.dtype)


def _what_fits(factor: Factor, recorded: NDArray[np.float32]) -> str:
    """Say which device gives the numbers."""
    elements = _elements(factor)
    few = np.unique(np.linspace(0, elements.size - 1, _SAMPLE).astype(np.int64))

    def fits(device: DrawnOn) -> bool:
        return np.array_equal(_values(device, factor, elements[few]), recorded[few]) and (
            np.array_equal(_values(device, factor, elements), recorded)
        )

    if fits(DrawnOn("cpu")):
        return "They fit a CPU"
    for older in (False, True):
        sizes = (DrawnOn("cuda", blocks, older=older) for blocks in range(1, _MAX_BLOCKS + 1))
        fitting = [device for device in sizes if fits(device)]
        if len(fitting) == 1:
            return f"They fit {fitting[0]}"
        if fitting:
            first, last = fitting[0].blocks, fitting[-1].blocks
            return f"They fit {len(fitting)} sizes of GPU, from {first} to {last} blocks"
    return (
        f"They fit no CPU and no GPU of up to {_MAX_BLOCKS} blocks: the numbers belong to "
        "another seed or basis"
    )
