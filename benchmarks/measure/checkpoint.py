"""A whole checkpoint: merging against cp, loading merged against loading plain, memory."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
import numpy as np
from safetensors import safe_open

from measure.timing import Figure, alternate
from nola_edge.demo.synthetic import llama_7b, trained_adapter, write_checkpoint
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.merge.open import open_merged
from nola_edge.merge.write import merge_checkpoint
from nola_edge.processes import python_module

if TYPE_CHECKING:
    from collections.abc import Iterator

_THREADS = 2


def checkpoint_figures(folder: Path, layers: int, rounds: int) -> Iterator[Figure]:
    """Yield the figures of a synthetic LLaMA 7B with some of its layers, all linears adapted.

    Parameters
    ----------
    folder : Path
        Existing, empty, on the disk to measure.
    layers : int
        0.4 GB each, besides 0.26 GB of embeddings; disk for three copies is needed.
    rounds : int
    """
    base, adapter = folder / "base", folder / "adapter"
    nbytes = write_checkpoint(base, llama_7b(layers))
    trained_adapter(llama_7b(layers).linears()).save(adapter)
    size = f"{nbytes / 1e9:.2f} GB"
    merged, copied = folder / "merged", folder / "copied"

    def clear() -> None:
        # Space is given back and dirty pages are written before the clock starts.
        shutil.rmtree(merged, ignore_errors=True)
        shutil.rmtree(copied, ignore_errors=True)
        os.sync()

    def merge() -> None:
        merge_checkpoint(base, adapter, merged, num_threads=_THREADS)

    def copy() -> None:
        subprocess.run(["cp", "-r", base, copied], check=True)

    def copy_to_disk() -> None:
        copy()
        for path in copied.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    for peer, against in (("cp", copy), ("cp and fsync", copy_to_disk)):
        ours, theirs = alternate(merge, against, rounds=rounds, prepare=clear)
        yield Figure(f"merge_checkpoint, {size}, warm", peer, ours, theirs, 1.4, False)
    clear()
    yield _memory(folder, nbytes)
    clear()
    yield from _loading(base, adapter, rounds, size)


def _memory(folder: Path, nbytes: int) -> Figure:
    command = python_module("nola_edge.demo.comparison", "ours", "base", "adapter", "merged")
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    peak = json.loads(done.stdout)["peak_bytes"]
    shape = llama_7b(1)
    allowed = 300e6 + 2 * shape.vocabulary * shape.hidden
    note = f"{peak / 1e6:.0f} MB for {nbytes / 1e9:.2f} GB"
    return Figure(
        "merge_checkpoint, peak memory", "300 MB + a tensor", peak, allowed, 1, False, note
    )


def _loading(base: Path, adapter: Path, rounds: int, size: str) -> Iterator[Figure]:
    def load_merged() -> None:
        with open_merged(base, adapter, num_threads=_THREADS) as tensors:
            for name in tensors:
                values = tensors[name]
                if not values.flags.writeable:
                    # Untouched, so only mapped: bring every page into memory, as the peer does.
                    values.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()

    def load_plain() -> None:
        with safe_open(base / "model.safetensors", "numpy") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                file.get_tensor(name)

    def read_bytes() -> None:
        with SafetensorsFile.open(base / "model.safetensors") as file:
            for info in file.tensors.values():
                file.read_into(np.empty(info.nbytes, np.uint8).data, info.start)

    def forget() -> None:
        for path in base.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    drop = forget if hasattr(os, "posix_fadvise") else None
    for peer, against in (("safetensors", load_plain), ("bare pread", read_bytes)):
        ours, theirs = alternate(load_merged, against, rounds=rounds)
        yield Figure(f"open_merged, {size}, warm", peer, ours, theirs, 1.6, False)
        if drop is not None:
            ours, theirs = alternate(load_merged, against, rounds=rounds, prepare=drop)
            yield Figure(f"open_merged, {size}, cold", peer, ours, theirs, 1.15, False)
