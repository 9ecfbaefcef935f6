"""Check that builds of the program `nola` write the bytes that the Python package writes.

    python scripts/compare_programs.py PROGRAM...

A PROGRAM is a path, or a command such as "qemu-arm build/static/nola-armv7". Each merges a packed
adapter into a model, and makes a LoRA for llama.cpp of it; sizes and hashes are printed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

import nola_edge as ne
from nola_edge.demo.synthetic import DecoderShape, trained_adapter, write_checkpoint
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.content_hash import content_hash
from nola_edge.files.gguf_writer import write_gguf

SHAPE = DecoderShape(layers=1, hidden=256, intermediate=704, vocabulary=512)
#: Module within a block -> tensor within a block.
TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_inputs() -> None:
    """Write an adapter that expects its result, and its base in both formats."""
    write_checkpoint(Path("base"), SHAPE)
    linears = SHAPE.linears()
    adapter = trained_adapter(linears, r=8, num_basis=64)
    adapter.pack("adapter.nola", expect=[ne.expect_checkpoint("base", adapter)])
    metadata: dict[str, str | int] = {
        "general.architecture": "llama",
        "llama.attention.head_count": 4,
    }
    prefix = "model.layers.0."
    write_gguf(
        Path("base.gguf"),
        metadata,
        {
            f"blk.0.{TENSORS[module.removeprefix(prefix)]}.weight": np.ones(shape, np.float16)
            for module, shape in linears.items()
        },
    )


def hashes(make: Callable[[str, str], None], name: str) -> tuple[str, str]:
    """Return the SHA-256 of both results of a way to make them."""
    merged, lora = f"{name}-merged", f"{name}.gguf"
    make(merged, lora)
    return content_hash(merged).sha256, content_hash(lora).sha256


def by_the_package(merged: str, lora: str) -> None:
    """Make both results in Python."""
    ne.merge_checkpoint("base", "adapter.nola", merged)
    export_gguf_lora("adapter.nola", "base.gguf", lora)


def by_a_program(command: list[str]) -> Callable[[str, str], None]:
    """Return what makes both results with a build of the program."""

    def make(merged: str, lora: str) -> None:
        run = [*command, "merge", "base", "adapter.nola", "-q", "-o", merged]
        subprocess.run(run, check=True)
        run = [*command, "export", "gguf-lora", "adapter.nola", "--base", "base.gguf"]
        subprocess.run([*run, "-q", "-o", lora], check=True)

    return make


@click.command()
@click.argument("programs", nargs=-1, required=True)
def main(programs: tuple[str, ...]) -> None:
    """Compare builds of the program with the Python package."""
    here = Path.cwd()
    commands = [[*words[:-1], str(here / words[-1])] for words in map(shlex.split, programs)]
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        write_inputs()
        wanted = hashes(by_the_package, "wanted")
        click.echo(f"merged {wanted[0]}\nlora   {wanted[1]}  (nola-edge)")
        for number, (program, command) in enumerate(zip(programs, commands, strict=True)):
            found = hashes(by_a_program(command), str(number))
            size = Path(command[-1]).stat().st_size
            click.echo(f"{'same' if found == wanted else found}  {size:>10,} bytes  {program}")
            if found != wanted:
                raise click.ClickException(f"{program} writes other bytes")
        os.chdir(here)


if __name__ == "__main__":
    main()
