"""Measure the CUDA kernels and training on a GPU; see scripts/gpu_check.sh.

python benchmarks/gpu.py --save benchmarks/results
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

import gpu_kernels
import gpu_training
from nola_edge import build_info
from nola_edge.bench import report
from nola_edge.bench.timing import Figure
from readme_table import table

PARTS = {"kernels": gpu_kernels.figures, "training": gpu_training.figures}


def machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        **report.machine(),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": build_info()["cuda_compiler"],
    }


def measured(parts: tuple[str, ...]) -> Iterator[Figure]:
    for part in parts:
        for figure in PARTS[part]():
            click.echo(report.row(figure))
            yield figure


@click.command()
@click.option("--save", type=click.Path(path_type=Path), help="Folder for a JSON file and a table.")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, default=PARTS)
def main(save: Path | None, parts: tuple[str, ...]) -> None:
    """Measure everything, or a part, on the first GPU."""
    if not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU")
    if build_info()["cuda_compiler"] is None:
        raise click.ClickException(
            "nola-edge was built without CUDA; scripts/gpu_check.sh builds it with"
        )
    about = machine()
    click.echo(
        f"{about['gpu']}, {about['multiprocessors']} multiprocessors, torch {about['torch']}, "
        f"{about['nvcc']}, {about['date']}"
    )
    record = report.record(list(measured(parts)), about)
    if save is None:
        return
    save.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    path = save / f"{about['date'][:7]}-{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    heading = f"{about['gpu']}, {about['date']}"
    path.with_suffix(".md").write_text(f"{heading}\n\n{table(record)}\n")
    click.echo(f"written to {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
