"""Switching a resident model, and merging at load, against what the machine allows.

    python benchmarks/floors.py --save benchmarks/results/floors.json

A LLaMA-style decoder of 0.32 billion parameters with random weights in bfloat16, all linear layers
adapted. A switch has to read the base and write the weights once, and to do the multiply-adds:
both are measured alone, in turns with it, on as many threads. So is reading the base into the
cache: a switch maps nothing, so it reads before it multiplies. Loading is measured up to the end of
the first forward pass, since a weight that is only mapped has not been read before; the floor of
merging there is to give each weight memory of its own, and to read it into that.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from integrations import load, prepare
from measure.report import heading, machine, record, row
from measure.timing import Figure, in_turns
from nola_edge import ops
from nola_edge.dtypes import numpy_dtype
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.models.mapped_memory import byte_view
from nola_edge.torch import AdapterSwitch
from nola_edge.workers import Buffers

#: Bytes that one thread works on at a time: for the memory's floor, as a merge does; for the
#: multiply-adds', what stays in the second-level cache.
COPIED, CACHED = 4 << 20, 512 << 10

Pair = tuple[NDArray[Any], NDArray[Any]]


def adapted(model: Any, base: Path) -> list[Pair]:
    """Return each adapted weight, in the mapped file and in the model's memory."""
    checkpoint = Checkpoint.open(base)
    parameters = dict(model.named_parameters())
    pairs = []
    for name, (file, _) in checkpoint.tensors.items():
        if "_proj." in name:
            weight = parameters[name].data.view(torch.uint16).numpy()
            pairs.append((file.array(name).view(np.uint16), weight))
    return pairs


def on_threads(threads: int, work: Callable[..., None], pieces: list[Any]) -> Callable[[], None]:
    pool = ThreadPoolExecutor(threads)
    return lambda: [None for _ in pool.map(lambda piece: work(*piece), pieces)] and None


def row_blocks(pairs: list[Pair], nbytes: int) -> list[Pair]:
    blocks = []
    for source, target in pairs:
        step = max(1, nbytes // (target.nbytes // len(target)))
        blocks += [
            (source[start : start + step], target[start : start + step])
            for start in range(0, len(target), step)
        ]
    return blocks


def copies(pairs: list[Pair], threads: int) -> Callable[[], None]:
    """Read the base and write the weights, nothing else."""

    def copy(source: NDArray[Any], target: NDArray[Any]) -> None:
        np.copyto(target, source)

    return on_threads(threads, copy, row_blocks(pairs, COPIED))


def reads(base: Path, threads: int) -> Callable[[], None]:
    """Read the base into memory that stays in the cache."""
    checkpoint = Checkpoint.open(base)
    buffers = Buffers()
    pieces = [
        (file, info.start + start, min(COPIED, info.nbytes - start))
        for name, (file, info) in checkpoint.tensors.items()
        if "_proj." in name
        for start in range(0, info.nbytes, COPIED)
    ]

    def read(file: SafetensorsFile, start: int, nbytes: int) -> None:
        file.read_into(buffers.get(nbytes), start)

    return on_threads(threads, read, pieces)


def multiply_adds(pairs: list[Pair], rank: int, threads: int) -> Callable[[], None]:
    """Merge as many elements, in rows that stay in the cache."""
    mine = threading.local()

    def merge(_: NDArray[Any], target: NDArray[Any]) -> None:
        rows, cols = target.shape
        made = mine.__dict__.setdefault((rows, cols), [])
        if not made:
            made.append(np.zeros((rows, cols), numpy_dtype("BF16")))
            made.append(np.full((rows, rank), 1e-3, np.float32))
            made.append(np.full((rank, cols), 1e-3, np.float32))
        ops.merge_(*made, 1.0, num_threads=1)

    return on_threads(threads, merge, row_blocks(pairs, CACHED))


def switch_figures(folder: Path, rank: int, rounds: int, threads: int) -> Iterator[Figure]:
    # As a loader maps them out of a file, weights begin anywhere; memory of one's own is aligned.
    for keep_bytes, own, what in (
        (256 << 20, True, "kept"),
        (256 << 20, False, "kept, as loaded"),
        (0, True, "anew"),
    ):
        model = load(folder)
        for parameter in model.parameters() if own else ():
            parameter.data = parameter.data.clone()
        options = {"num_threads": threads, "keep_bytes": keep_bytes}
        with AdapterSwitch(model, folder / "base", **options) as switch:
            for name in ("first", "second"):
                switch.add(name, folder / name)
                switch.use(name)
            pairs = adapted(model, folder / "base")
            times = in_turns(
                partial(swap, switch),
                copies(pairs, threads),
                multiply_adds(pairs, rank, threads),
                reads(folder / "base", threads),
                rounds=rounds,
            )
            ours, copied, multiplied, read = map(statistics.median, times)
            least = " / ".join(f"{min(one) * 1e3:.0f}" for one in times)
            yield Figure(
                f"use, r = {rank}, factors {what}", "the larger floor", ours,
                max(copied, multiplied), 1.3, False,
                f"{ours * 1e3:.0f} ms; memcpy {copied * 1e3:.0f} ms, multiply-adds "
                f"{multiplied * 1e3:.0f} ms, reading {read * 1e3:.0f} ms (least: {least}); "
                f"{threads} threads, "
                f"{switch.kept_bytes / 1e6:.0f} MB kept",
            )  # fmt: skip


def swap(switch: AdapterSwitch) -> None:
    switch.use("first" if switch.active == "second" else "second")


def read_into_own(model: Any, base: Path, threads: int) -> Any:
    """Give each adapted weight memory of its own, with what the file holds."""
    parameters = dict(model.named_parameters())
    pieces = []
    with Checkpoint.open(base) as checkpoint:
        for name, (file, info) in checkpoint.tensors.items():
            if "_proj." in name:
                own = parameters[name].data = torch.empty(info.shape, dtype=torch.bfloat16)
                pieces += [
                    (byte_view(own)[start : start + COPIED], info.start + start, file)
                    for start in range(0, info.nbytes, COPIED)
                ]
        on_threads(threads, lambda part, at, file: file.read_into(part, at), pieces)()
    return model


def loading_figure(folder: Path, rank: int, rounds: int, threads: int) -> Figure:
    tokens = torch.arange(1, 33)[None]

    @torch.no_grad()
    def first_answer(load_model: Callable[[], Any]) -> None:
        load_model()(input_ids=tokens)

    times = in_turns(
        lambda: first_answer(lambda: load(folder, "first")),
        lambda: first_answer(lambda: load(folder)),
        lambda: first_answer(lambda: read_into_own(load(folder), folder / "base", threads)),
        rounds=rounds,
    )
    ours, plain, own = map(statistics.median, times)
    least = " / ".join(f"{min(one):.2f}" for one in times)
    return Figure(
        f"at load, r = {rank}, to the first answer", "from_pretrained", ours, plain, 1.15, False,
        f"{ours:.2f} s against {plain:.2f} s, and {own:.2f} s with weights in memory of their own "
        f"(least: {least}), {threads} threads",
    )  # fmt: skip


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--ranks", default=(4, 16), multiple=True, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(rounds: int, threads: int, ranks: tuple[int, ...], save: Path | None) -> None:
    """Measure switching and loading against floors measured in the same run."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    about = machine()
    click.echo(heading(about))
    measured = []
    for rank in ranks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, rank)
            for figure in switch_figures(folder, rank, rounds, threads):
                measured.append(figure)
                click.echo(row(figure))
            measured.append(loading_figure(folder, rank, rounds, threads))
            click.echo(row(measured[-1]))
    if save is not None:
        save.write_text(json.dumps(record(measured, about), indent=2) + "\n")


if __name__ == "__main__":
    main()
