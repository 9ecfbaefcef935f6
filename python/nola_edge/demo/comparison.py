"""Larger weights: make a base and an adapter, merge, verify, and compare with the plain way.

The plain way is what merging in a training framework does: load the whole model, compute the full
difference of every weight in fp32, round it, add it, save. It is written here in numpy, so that
the demonstration needs nothing else; both run in processes of their own, whose peak memory is
what the operating system reports.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.demo.child import result_of
from nola_edge.demo.memory import peak_bytes
from nola_edge.demo.scratch import scratch_folder
from nola_edge.demo.synthetic import DecoderShape, trained_adapter, write_checkpoint
from nola_edge.files.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO_SHAPE = DecoderShape(layers=6, hidden=1024, intermediate=2816, vocabulary=16000)
#: What the comparison puts on the disk, about.
DISK_BYTES = 700_000_000


@dataclass(frozen=True)
class Comparison:
    """Measurements of one merge, and of the same the plain way.

    Attributes
    ----------
    base_bytes, adapter_bytes : int
    modules, coefficients : int
    ours, plain : dict
        ``seconds`` and ``peak_bytes`` (above an interpreter with numpy loaded).
    identical : bool
        What ``verify`` says of our result.
    differing : int
        Tensors in which the plain way, which rounds twice, gives other bits.
    """

    base_bytes: int
    adapter_bytes: int
    modules: int
    coefficients: int
    ours: dict[str, float]
    plain: dict[str, float]
    identical: bool
    differing: int


def compare(say: Callable[[str], None]) -> Comparison:
    """Merge larger weights both ways, in a temporary folder.

    Parameters
    ----------
    say : callable
        Told what is being done.

    Raises
    ------
    OutputError
        If the temporary folder's disk has no room.
    """
    with scratch_folder(DISK_BYTES) as folder:
        return _compare_in(folder, say)


def _compare_in(folder: Path, say: Callable[[str], None]) -> Comparison:
    from nola_edge.merge.verify import verify_checkpoint

    base, adapter = folder / "base", folder / "adapter"
    say("generating weights of a decoder with 77M parameters, and an adapter for them")
    base_bytes = write_checkpoint(base, DEMO_SHAPE)
    made = trained_adapter(DEMO_SHAPE.linears(), base=base)
    made.save(adapter)
    say("merging: nola-edge merge base adapter -o merged")
    ours = _measure("ours", base, adapter, folder / "merged")
    say("merging the plain way: the whole model in memory, updates in fp32")
    (folder / "plain").mkdir()
    plain = _measure("plain", base, adapter, folder / "plain" / "model.safetensors")
    say("verifying: nola-edge verify merged base adapter")
    report = verify_checkpoint(folder / "merged", base, adapter)
    other = verify_checkpoint(folder / "plain", base, adapter)
    return Comparison(
        base_bytes=base_bytes,
        adapter_bytes=sum(file.stat().st_size for file in adapter.iterdir()),
        modules=len(made.modules),
        coefficients=made.num_coefficients,
        ours=ours,
        plain=plain,
        identical=report.identical,
        differing=len(other.differences),
    )


def _measure(way: str, base: Path, adapter: Path, output: Path) -> dict[str, float]:
    result: dict[str, float] = result_of("nola_edge.demo.comparison", way, base, adapter, output)
    return result


def merge_plainly(base: Path, adapter_path: Path, output: Path) -> None:
    """Merge as a training framework would, in numpy: the peer that the demonstration beats."""
    import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from nola_edge.adapters import Adapter

    adapter = Adapter.load(adapter_path)
    weights: dict[str, Any] = load_file(base / "model.safetensors")
    for module in adapter.modules:
        weight = weights[f"{module}.weight"]
        a, b = adapter.factors(module, *weight.shape)
        delta = np.float32(adapter.scaling) * (b @ a)
        weights[f"{module}.weight"] = weight + delta.astype(weight.dtype)
    save_file(weights, output)


def _main(way: str, base: Path, adapter: Path, output: Path) -> None:
    import nola_edge.merge.write
    import nola_edge.ops

    before = peak_bytes()
    begin = time.perf_counter()
    if way == "ours":
        nola_edge.merge.write.merge_checkpoint(base, adapter, output)
    else:
        merge_plainly(base, adapter, output)
    seconds = time.perf_counter() - begin
    print(dumps({"seconds": seconds, "peak_bytes": peak_bytes() - before}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
