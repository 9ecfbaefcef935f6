"""What a real model keeps of an adapter that is merged into its few bits, by how it is rounded.

    python examples/training/smollm2.py --data E2E --method "NOLA 1/4" --cache CACHE --save ADAPTER
    OMP_NUM_THREADS=1 python benchmarks/rounding.py --data E2E --cache CACHE --adapter ADAPTER

SmolLM2-135M-Instruct in Q4_1, on pairs that the adapter was not trained on, beside the unquantised
merge: the base's values plus the change, in float32. Loss and divergence are nats for a token.
Stochastic rounding to the base's own grid is the peer.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from measure.real_model import HeldOut, real_model

sys.path.append(str(Path(__file__).parents[1] / "examples" / "training"))
import smollm2

from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf
from nola_edge.gguf.quantization import ROUNDINGS, numbers_of

Floats = NDArray[np.float32]
PATH = click.Path(path_type=Path)
#: Hugging Face's names of a layer's matrices, and their heads where rows are interleaved.
MATRICES = {
    "attn_q": ("self_attn.q_proj", 9),
    "attn_k": ("self_attn.k_proj", 3),
    "attn_v": ("self_attn.v_proj", None),
    "attn_output": ("self_attn.o_proj", None),
    "ffn_gate": ("mlp.gate_proj", None),
    "ffn_up": ("mlp.up_proj", None),
    "ffn_down": ("mlp.down_proj", None),
}
BATCH = 8


def matrices(path: Path) -> dict[str, Floats]:
    """Return the values of the matrices of all layers."""
    found = {}
    with GgufFile.open(path) as file:
        for name, info in file.tensors.items():
            if len(info.shape) == 2 and name.startswith("blk."):
                data = np.empty((info.shape[0], info.nbytes // info.shape[0]), np.uint8)
                file.read_into(data.reshape(-1).data, info.start)
                found[name] = numbers_of(info.dtype).decode(data)
    return found


def stochastic(base: Path, values: dict[str, Floats]) -> Iterator[tuple[str, Floats]]:
    """Round values up or down to the Q4_1 grid of their base, by how near each code is."""
    rng = np.random.default_rng(0)
    with GgufFile.open(base) as file:
        for name, wanted in values.items():
            info = file.tensors[name]
            data = np.empty((wanted.size // 32, 20), np.uint8)
            file.read_into(data.reshape(-1).data, info.start)
            scale, minimum = data[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
            places = (wanted.reshape(-1, 32) - minimum) / np.where(scale == 0, 1, scale)
            codes = np.floor(places + rng.random(places.shape, np.float32)).clip(0, 15)
            yield name, (scale * codes + minimum).reshape(wanted.shape)


@torch.no_grad()
def put(values: dict[str, Floats], model: Any) -> None:
    """Give a model the matrices of a GGUF file."""
    parameters = dict(model.named_parameters())
    for name, matrix in values.items():
        _, layer, kind, _ = name.split(".")
        module, heads = MATRICES[kind]
        rows = matrix
        if heads is not None:
            halves = matrix.reshape(heads, len(matrix) // heads // 2, 2, -1)
            rows = halves.swapaxes(1, 2).reshape(matrix.shape)
        place = parameters[f"model.layers.{layer}.{module}.weight"]
        place.copy_(torch.from_numpy(np.ascontiguousarray(rows)))


@dataclass(frozen=True)
class Merge:
    """A merge of an adapter, at a weight, into a place."""

    base: Path
    adapter: Path
    weight: float
    place: Path

    def __call__(self, **options: str) -> dict[str, Floats]:
        """Merge in a way and return the matrices that it gives."""
        given = [(str(self.adapter), self.weight)]
        merge_gguf(self.base, given, self.place, force=True, **options)
        return matrices(self.place)


def ways(merge: Merge) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Yield each way with its matrices: first what is wanted, then the base."""
    wanted = merge(outtype="F32")
    yield "unquantised", wanted
    yield "base alone", matrices(merge.base)
    yield "Q8_0", merge(outtype="Q8_0")
    for rounding in ROUNDINGS:
        yield f"Q4_1, {rounding}", merge(rounding=rounding)
    yield "Q4_1, stochastic", dict(stochastic(merge.base, wanted))


@click.command()
@click.option("--data", required=True, type=PATH, help="Folder of the E2E files.")
@click.option("--cache", required=True, type=PATH)
@click.option("--adapter", required=True, type=PATH)
@click.option("--weight", "weights", multiple=True, default=(1.0, 0.5), show_default=True)
@click.option("--pairs", default=16, show_default=True)
def main(data: Path, cache: Path, adapter: Path, weights: tuple[float, ...], pairs: int) -> None:
    """Print a table for each weight of the adapter."""
    base = smollm2.gguf_file()
    for weight in weights:
        click.echo(f"\nweight {weight:g}, {pairs} pairs")
        click.echo("| | part | noise | loss | of the improvement | divergence |")
        with tempfile.TemporaryDirectory() as name:
            merge = Merge(base, adapter, weight, Path(name, "merged.gguf"))
            table(merge, cache, data, pairs)


def table(merge: Merge, cache: Path, data: Path, pairs: int) -> None:
    """Print a line for each way."""
    model, tokenizer = real_model(cache)
    held_out = HeldOut(model, tokenizer, data, pairs, BATCH)
    before = matrices(merge.base)
    made = ways(merge)
    first, wanted = next(made)
    put(wanted, model)
    best, _ = held_out.loss_and_divergence()
    put(before, model)
    worst, _ = held_out.loss_and_divergence()
    for way, values in itertools.chain([(first, wanted)], made):
        put(values, model)
        loss, divergence = held_out.loss_and_divergence()
        part, noise = survival(before, wanted, values)
        kept = (worst - loss) / (worst - best)
        click.echo(
            f"| {way} | {part:.2f} | {noise:.2f} | {loss:.4f} | {kept:.1%} | {divergence:.4f} |"
        )


def survival(
    before: dict[str, Floats], wanted: dict[str, Floats], got: dict[str, Floats]
) -> tuple[float, float]:
    """Return the part of the change that is there, and the noise beside it."""
    from nola_edge.gguf.survival import Survival, added_up

    sums = added_up(Survival.of(before[name], wanted[name], got[name]) for name in wanted)
    assert sums.part is not None
    assert sums.noise is not None
    return sums.part, sums.noise


if __name__ == "__main__":
    main()
