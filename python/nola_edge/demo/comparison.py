"""The demonstration: make a base and an adapter, merge, verify, and compare with the plain way.

The plain way is what merging in a training framework does: load the whole model, compute the full
difference of every weight in fp32, round it, add it, save. It is written here in numpy, so that
the demonstration needs nothing else; both run in processes of their own, whose peak memory is
what the operating system reports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.bench.memory import peak_bytes
from nola_edge.errors import OutputError
from nola_edge.jsonio import dumps
from nola_edge.synthetic import DecoderShape, trained_adapter, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO_SHAPE = DecoderShape(layers=6, hidden=1024, intermediate=2816, vocabulary=16000)
#: What a demonstration puts on the disk, about.
DISK_BYTES = 700_000_000
#: … and what it leaves there.
KEPT_FILES = (
    "base/model.safetensors", "base/config.json",
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
    "merged/model.safetensors", "merged/config.json", "plain/model.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class DemoResult:
    """Measurements of one demonstration.

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


def run_demo(folder: Path, say: Callable[[str], None]) -> DemoResult:
    """Run the demonstration in an existing, empty folder.

    Parameters
    ----------
    folder : Path
        Gets ``base``, ``adapter``, ``merged`` and ``plain``.
    say : callable
        Told what is being done.
    """
    from nola_edge.merge.verify import verify_checkpoint

    base, adapter = folder / "base", folder / "adapter"
    say("making a small decoder of random bf16 weights and an adapter for all its linears")
    base_bytes = write_checkpoint(base, DEMO_SHAPE)
    made = trained_adapter(DEMO_SHAPE.linears(), base=base)
    made.save(adapter)
    say("merging: nola-edge merge base adapter -o merged")
    ours = _measure("ours", base, adapter, folder / "merged")
    say("merging the plain way: whole model in memory, full fp32 differences")
    (folder / "plain").mkdir()
    plain = _measure("plain", base, adapter, folder / "plain" / "model.safetensors")
    say("verifying: nola-edge verify merged base adapter")
    report = verify_checkpoint(folder / "merged", base, adapter)
    other = verify_checkpoint(folder / "plain", base, adapter)
    return DemoResult(
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
    program = [sys.executable, "-m", "nola_edge.demo.comparison"]
    command = [*program, way, str(base), str(adapter), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise OutputError(f"the measurement failed: {last}", file=output)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def merge_plainly(base: Path, adapter_path: Path, output: Path) -> None:
    """Merge as a training framework would, in numpy: the peer that the demonstration beats."""
    import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from nola_edge.adapter import Adapter

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
