"""Merging into a GGUF file, against copying it; in F16, a part of ``integrations.py``.

    python benchmarks/gguf_merge.py

merges into quantised tensors, on one thread, and counts processor time: beside the same steps in
numpy, by the quantisers of the gguf package, and beside reading and writing the bytes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np

from measure.timing import Figure, alternate
from nola_edge import build_info, ops
from nola_edge.demo.synthetic import llama_7b, trained_adapter
from nola_edge.gguf import blocks, merge_gguf

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


#: A gate and an output projection of a 7B LLaMA: 62 million weights.
QUANTISED = {
    "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj", (4096, 4096)),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj", (11008, 4096)),
}
#: Rows that are dequantised and quantised again at a time.
ROWS = 64


def write_quantised(path: Path, kind: str) -> None:
    """Write the tensors in a quantised type."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    values = (np.random.default_rng(0).standard_normal((4096, 4096)) * 0.02).astype(np.float32)
    for name, (_, shape) in QUANTISED.items():
        rows = blocks.quantized(np.resize(values, shape), kind)
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merge_in_numpy(base: Path, adapter: Any, kind: str, output: Path) -> None:
    """Merge by the gguf package's quantisers, and measure in numpy what survives."""
    code = gguf.GGMLQuantizationType[kind]
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(base).tensors}
    with output.open("wb") as file:
        for name, (module, (out_features, in_features)) in QUANTISED.items():
            a = adapter.factor_a(module, in_features, (0, in_features), 1)
            for start in range(0, out_features, ROWS):
                before = gguf.quants.dequantize(tensors[name][start : start + ROWS], code)
                wanted = before.copy()
                b = adapter.factor_b(module, out_features, (start, start + ROWS), 1)
                ops.merge_(wanted, b, a, adapter.scaling, num_threads=1)
                rows = gguf.quants.quantize(wanted, code)
                got = gguf.quants.dequantize(rows, code)
                change, made = (v.astype(np.float64) - before for v in (wanted, got))
                _ = float(np.sum(change * made)) / float(np.sum(change * change))
                file.write(rows)


def copy_bytes(base: Path, output: Path) -> None:
    with base.open("rb") as source, output.open("wb") as target:
        while data := source.read(4 << 20):
            target.write(data)


def processor_seconds(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Return the median processor time of functions that run in turns, after one turn."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, kept in zip(functions, times, strict=True):
            begin = time.process_time()
            function()
            if turn > 0:
                kept.append(time.process_time() - begin)
    return [statistics.median(kept) for kept in times]


@click.command()
@click.option("--rounds", default=3, show_default=True)
def main(rounds: int) -> None:
    """Print a row of figures for each type and rounding."""
    weights = sum(rows * cols for _, (rows, cols) in QUANTISED.values())
    click.echo(f"{build_info()['active_isa']}, one thread, {weights / 1e6:.0f} million weights")
    click.echo("| type | rounding | million weights a second | numpy's | ratio | copying takes |")
    with tempfile.TemporaryDirectory() as name:
        base, out, other = (Path(name, file) for file in ("base.gguf", "out.gguf", "other"))
        adapter = trained_adapter(dict(QUANTISED.values()))
        for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
            write_quantised(base, kind)

            def merge(rounding: str) -> Callable[[], object]:
                options = {"force": True, "num_threads": 1, "rounding": rounding}
                return lambda: merge_gguf(base, adapter, out, **options)

            nearest, amplified, numpy, copied = processor_seconds(
                merge("nearest"), merge("amplified"),
                lambda kind=kind: merge_in_numpy(base, adapter, kind, other),
                lambda: copy_bytes(base, other),
                rounds=rounds,
            )  # fmt: skip
            for rounding, ours in (("nearest", nearest), ("amplified", amplified)):
                click.echo(
                    f"| {kind} | {rounding} | {weights / ours / 1e6:.0f} | "
                    f"{weights / numpy / 1e6:.0f} | {numpy / ours:.1f}× | {copied / ours:.0%} |"
                )


if __name__ == "__main__":
    main()
