"""Check that builds of the program `nola` write the bytes that the Python package writes.

    python scripts/compare_programs.py PROGRAM...

A PROGRAM is a path, or a command such as "qemu-arm build/static/nola-armv7". Each merges a packed
adapter into a model, as a folder and as a GGUF file in F16 and Q4_1, and makes a LoRA for llama.cpp
of it; sizes and hashes are printed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import gguf
import numpy as np

import nola_edge as ne
from nola_edge.demo.synthetic import DecoderShape, trained_adapter, write_checkpoint
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.content_hash import content_hash
from nola_edge.gguf import merge_gguf
from nola_edge.gguf.blocks import quantized

SHAPE = DecoderShape(layers=1, hidden=256, intermediate=704, vocabulary=512)
PREFIX = "model.layers.0."
GGUF_KINDS = ("F16", "Q4_1")
#: Module within a block -> tensor within a block.
TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_inputs() -> None:
    """Write an adapter that expects its result, and its base in every format."""
    write_checkpoint(Path("base"), SHAPE)
    adapter = trained_adapter(SHAPE.linears(), r=8, num_basis=64)
    adapter.pack("adapter.nola", expect=[ne.expect_checkpoint("base", adapter)])
    rng = np.random.default_rng(0)
    values = {
        f"blk.0.{TENSORS[module.removeprefix(PREFIX)]}.weight": (
            rng.standard_normal(shape) * 0.02
        ).astype(np.float32)
        for module, shape in SHAPE.linears().items()
    }
    for kind in GGUF_KINDS:
        writer = gguf.GGUFWriter(f"{kind}.gguf", "llama")
        writer.add_head_count(4)
        for name, tensor in values.items():
            rows = tensor.astype(np.float16) if kind == "F16" else quantized(tensor, kind)
            code = None if kind == "F16" else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, rows, raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def by_the_package(folder: Path) -> None:
    """Make all results in Python."""
    ne.merge_checkpoint("base", "adapter.nola", folder / "folder")
    for kind in GGUF_KINDS:
        merge_gguf(f"{kind}.gguf", "adapter.nola", folder / f"{kind}.gguf")
    export_gguf_lora("adapter.nola", "Q4_1.gguf", folder / "lora.gguf")


def by_a_program(command: list[str], folder: Path) -> None:
    """Make them with a build of the program."""

    def run(*words: str, output: str) -> None:
        subprocess.run([*command, *words, "-q", "-o", str(folder / output)], check=True)

    run("merge", "base", "adapter.nola", output="folder")
    for kind in GGUF_KINDS:
        run("merge", f"{kind}.gguf", "adapter.nola", output=f"{kind}.gguf")
    run("export", "gguf-lora", "adapter.nola", "--base", "Q4_1.gguf", output="lora.gguf")


def hashes(folder: Path) -> dict[str, str]:
    """Return result -> SHA-256."""
    return {path.name: content_hash(path).sha256 for path in sorted(folder.iterdir())}


@click.command()
@click.argument("programs", nargs=-1, required=True)
def main(programs: tuple[str, ...]) -> None:
    """Compare builds of the program with the Python package."""
    here = Path.cwd()
    commands = [[*words[:-1], str(here / words[-1])] for words in map(shlex.split, programs)]
    with TemporaryDirectory() as scratch:
        os.chdir(scratch)
        write_inputs()
        wanted_folder = Path("wanted")
        wanted_folder.mkdir()
        by_the_package(wanted_folder)
        wanted = hashes(wanted_folder)
        click.echo("\n".join(f"{sha256}  {name}" for name, sha256 in wanted.items()))
        for number, (program, command) in enumerate(zip(programs, commands, strict=True)):
            folder = Path(str(number))
            folder.mkdir()
            by_a_program(command, folder)
            found = hashes(folder)
            size = Path(command[-1]).stat().st_size
            if found != wanted:
                raise click.ClickException(f"{program} writes other bytes: {found}")
            click.echo(f"the same from {size:>10,} bytes: {program}")
        os.chdir(here)


if __name__ == "__main__":
    main()
