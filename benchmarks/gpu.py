"""Measure the CUDA kernels and training on a GPU; see scripts/gpu_check.sh.

python benchmarks/gpu.py --save benchmarks/results
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from measure import report
from nola_edge import build_info
from table import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measure.timing import Figure

#: Parts, and the modules that measure them.
PARTS = {"kernels": "gpu_kernels", "training": "gpu_training"}


def machine(torch: Any) -> dict[str, Any]:
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


def measured(parts: tuple[str, ...], failures: list[str]) -> Iterator[Figure]:
    """Yield the figures of all parts; one that fails does not take the others with it."""
    for part in parts:
        try:
            for figure in import_module(PARTS[part]).figures():
                click.echo(report.row(figure))
                yield figure
        except Exception as error:
            failures.append(f"{part}: {type(error).__name__}: {error}")
            click.echo(f"FAILED {failures[-1]}", err=True)


def write(folder: Path, figures: list[Figure], about: dict[str, Any]) -> Path:
    """Write a JSON file and a table; return the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    path = folder / f"{about['date'][:7]}-{name}.json"
    record = report.record(figures, about)
    path.write_text(json.dumps(record, indent=2) + "\n")
    path.with_suffix(".md").write_text(f"{about['gpu']}, {about['date']}\n\n{table(record)}\n")
    return path


@click.command()
@click.option("--save", type=click.Path(path_type=Path), help="Folder for a JSON file and a table.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(list(PARTS)),
    multiple=True,
    default=PARTS,
    help="What to measure; may be given twice. Default: everything.",
)
def main(save: Path | None, parts: tuple[str, ...]) -> None:
    """Measure the CUDA kernels, and training, on the first GPU."""
    try:
        import torch
    except ImportError:
        raise click.ClickException("needs torch with CUDA: pip install torch") from None
    if not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU: install a build of torch with CUDA")
    if build_info()["cuda_compiler"] is None:
        raise click.ClickException(
            "nola-edge was built without CUDA; scripts/gpu_check.sh builds it with"
        )
    about = machine(torch)
    click.echo(
        f"{about['gpu']}, {about['multiprocessors']} multiprocessors, torch {about['torch']}, "
        f"{about['nvcc']}, {about['date']}"
    )
    figures: list[Figure] = []
    failures: list[str] = []
    for figure in measured(parts, failures):
        figures.append(figure)
        if save is not None:  # after each: what was measured is kept, whatever comes next
            path = write(save, figures, about)
    if save is not None and figures:
        click.echo(f"written to {path} and {path.with_suffix('.md').name}")
    if failures:
        raise click.ClickException("; ".join(failures))


if __name__ == "__main__":
    main()
