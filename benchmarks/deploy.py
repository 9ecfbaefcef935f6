"""Measure kernels, whole checkpoints and start-up against their peers.

    python benchmarks/deploy.py --layers 4 --save figures.json --plot figures.png

Each figure is a ratio of medians from this run, taken in turns; the peers are torch (numpy where it
is not installed), memcpy and cp.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from measure import report
from measure.checkpoint import checkpoint_figures
from measure.kernels import kernel_figures
from measure.startup import startup_figures

SUITES = ("kernels", "checkpoint", "startup")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, action="append", help="repeatable; default: all")
    layers = "of the synthetic 7B checkpoint; 0.4 GB each, three copies on disk (default: 4)"
    parser.add_argument("--layers", type=int, choices=range(1, 33), default=4, help=layers)
    parser.add_argument("--rounds", type=int, default=7, help="medians of so many (default: 7)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint; default: temporary")
    parser.add_argument("--save", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the figures (needs matplotlib)")
    given = parser.parse_args()
    for path in (given.save, given.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: its parent folder does not exist; make it first")
    return given


def main() -> None:
    given = arguments()
    about = report.machine()
    print(report.heading(about))
    figures = []
    with tempfile.TemporaryDirectory(prefix="nola-edge-bench-", dir=given.folder) as scratch:
        suites = {
            "kernels": lambda: kernel_figures(given.rounds),
            "checkpoint": lambda: checkpoint_figures(Path(scratch), given.layers, given.rounds),
            "startup": lambda: startup_figures(given.rounds),
        }
        wanted = given.suite or SUITES
        for figure in itertools.chain.from_iterable(suites[name]() for name in wanted):
            figures.append(figure)
            print(report.row(figure), flush=True)
    if given.save is not None:
        given.save.write_text(json.dumps(report.record(figures, about), indent=2) + "\n")
    if given.plot is not None:
        report.plot(figures, about, given.plot)


if __name__ == "__main__":
    main()
