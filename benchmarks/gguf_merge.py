"""Merging into a GGUF file, against copying it; a part of ``integrations.py``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np

from measure.timing import Figure, alternate
from nola_edge.demo.synthetic import llama_7b, trained_adapter
from nola_edge.gguf import merge_gguf

HEADS = 32
SHAPE = llama_7b(layers=2)


def write_base(path: Path) -> None:
    """Write two layers of a 7B LLaMA and its embedding in F16."""
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(1 << 20) * 0.02).astype(np.float16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SHAPE.layers)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SHAPE.layers)
    writer.add_head_count(HEADS)
    for name, shape in SHAPE.tensors().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        values = np.resize(noise, shape)
        writer.add_tensor(stored, values if len(shape) == 2 else values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_figures(folder: Path, rounds: int, threads: int) -> Iterator[Figure]:
    base, merged, copied = (folder / f"{name}.gguf" for name in ("base", "merged", "copied"))
    write_base(base)
    adapter = trained_adapter(SHAPE.linears())
    size = f"{base.stat().st_size / 1e9:.2f} GB"

    def clear() -> None:
        merged.unlink(missing_ok=True)
        copied.unlink(missing_ok=True)
        os.sync()

    def merge(**options: str) -> Callable[[], None]:
        return lambda: merge_gguf(base, adapter, merged, num_threads=threads, **options)

    def copy() -> None:
        subprocess.run(["cp", base, copied], check=True)

    def copy_to_disk() -> None:
        copy()
        with copied.open("rb") as file:
            os.fsync(file.fileno())

    for peer, against in (("cp", copy), ("cp and fsync", copy_to_disk)):
        ours, theirs = alternate(merge(), against, rounds=rounds, prepare=clear)
        note = f"{ours:.2f} s against {theirs:.2f} s"
        yield Figure(f"merge of a GGUF file in F16, {size}", peer, ours, theirs, 1.5, False, note)
    clear()
