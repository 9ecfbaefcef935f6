"""The program `nola` against `nola-edge` and `cp`: a LoRA for llama.cpp, and merged files.

    python benchmarks/program.py NOLA --save benchmarks/results/program.json

An adapter for all linear layers of a 7B LLaMA (57,344 coefficients, 62 kB in 8 bits) becomes a GGUF
LoRA for a base that exists as a header with holes behind it; two layers of that model are merged
into a safetensors file and into a GGUF file in Q8_0. Each way is a process of its own, in turns;
`cp` copies the output. Peak memory is what a process held at most.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import gguf
import numpy as np

from gguf_merge import HEADS, QUANTISED, write_quantised
from measure.process import run
from measure.report import heading, machine, record
from nola_edge.demo.synthetic import DecoderShape, llama_7b, trained_adapter, write_checkpoint
from nola_edge.files.gguf_types import TENSOR_TYPES


def write_adapters(folder: Path) -> None:
    """Pack adapters for the whole model, for two layers, and for the GGUF file's tensors."""
    whole = trained_adapter(llama_7b().linears())
    whole.quantize(8).pack(folder / "whole.nola")
    trained_adapter(llama_7b(layers=2).linears()).pack(folder / "two.nola")
    trained_adapter(dict(QUANTISED.values())).pack(folder / "quantised.nola")


def write_header(path: Path, shape: DecoderShape) -> None:
    """Write the header of the model in Q4_0, and holes where its weights would be."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    kind = TENSOR_TYPES["Q4_0"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    nbytes = 0
    for module, sizes in shape.linears().items():
        size = int(np.prod(sizes)) // kind.block * kind.nbytes
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",)) or module
        code = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor_info(name, sizes, np.dtype(np.float32), size, raw_dtype=code)
        nbytes += size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    begin = -(-path.stat().st_size // 32) * 32
    os.truncate(path, begin + nbytes)


def cases(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yield what is done, the arguments that do it, and the name of the output."""
    write_adapters(folder)
    write_header(folder / "7b.gguf", llama_7b())
    write_checkpoint(folder / "base", llama_7b(layers=2))
    (folder / "base" / "model.safetensors").rename(folder / "base.safetensors")
    write_quantised(folder / "q8.gguf", "Q8_0")
    lora = ["export", "gguf-lora", "whole.nola", "--base", "7b.gguf", "--dtype"]
    yield "a LoRA for llama.cpp in F16", [*lora, "f16"], "lora.gguf"
    yield "… in F32", [*lora, "f32"], "lora.gguf"
    yield "merge, safetensors in BF16", ["merge", "base.safetensors", "two.nola"], "out.safetensors"
    yield "merge, GGUF in Q8_0", ["merge", "q8.gguf", "quantised.nola"], "out.gguf"


def medians(
    commands: dict[str, list[str]], rounds: int, clear: Callable[[], None]
) -> dict[str, list[float]]:
    """Return way -> (seconds, peak bytes), of ways that run in turns."""
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in commands}
    for _ in range(rounds):
        for way, command in commands.items():
            clear()
            found[way].append(run(command))
    return {
        way: [statistics.median(values) for values in zip(*runs, strict=True)]
        for way, runs in found.items()
    }


@click.command()
@click.argument("nola", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(nola: Path, rounds: int, save: Path | None) -> None:
    """Print a row for each case."""
    about = {**machine(), "program": f"{nola.stat().st_size:,} bytes"}
    click.echo(heading(about))
    click.echo("| | output | nola | nola-edge | cp and sync | peak of nola | of nola-edge |")
    program, lines, here = str(nola.resolve()), [], Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for case, arguments, output in cases(folder):
            subprocess.run([program, *arguments, "-q", "-o", output], check=True)
            Path(output).rename("kept")

            def clear(output: str = output) -> None:
                for path in (output, "copied"):
                    Path(path).unlink(missing_ok=True)
                os.sync()

            found = medians(
                {
                    "nola": [program, *arguments, "-q", "-o", output],
                    "nola-edge": [
                        sys.executable, "-m", "nola_edge", *arguments, "-q", "-o", output,
                    ],
                    "cp": ["sh", "-c", "cp kept copied && sync copied"],
                },
                rounds,
                clear,
            )  # fmt: skip
            size = Path("kept").stat().st_size
            lines.append({"case": case, "bytes": size, **found})
            times = " | ".join(f"{found[way][0]:.2f} s" for way in ("nola", "nola-edge", "cp"))
            peaks = " | ".join(f"{found[way][1] / 1e6:.0f} MB" for way in ("nola", "nola-edge"))
            click.echo(f"| {case} | {size / 1e6:,.0f} MB | {times} | {peaks} |")
            Path("kept").unlink()
        os.chdir(here)
    if save is not None:
        save.write_text(json.dumps({**record([], about), "cases": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
