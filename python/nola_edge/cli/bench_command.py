"""``nola-edge bench``."""

from __future__ import annotations

import itertools
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

from nola_edge.cli import output as ui
from nola_edge.cli.layout import say
from nola_edge.cli.path_types import FILE, FOLDER
from nola_edge.cli.summary import summary_options

_SUITES = ("kernels", "checkpoint", "startup")


@click.command(
    "bench", epilog="Example: nola-edge bench --layers 4 --save figures.json --plot figures.png"
)
@click.option(
    "--suite", type=click.Choice(_SUITES), multiple=True, help="Repeatable.  [default: all]"
)
@click.option(
    "--layers",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="Layers of the synthetic 7B checkpoint; 0.4 GB each, three copies on disk.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Medians of so many."
)
@click.option(
    "--folder", type=FOLDER, help="Where to put the checkpoint.  [default: the temporary folder]"
)
@click.option("--save", type=FILE, help="Write the figures as JSON.")
@click.option("--plot", "plot_path", type=FILE, help="Draw the figures (needs matplotlib).")
@summary_options
def command(
    suite: tuple[str, ...],
    layers: int,
    rounds: int,
    folder: str | None,
    save: str | None,
    plot_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure kernels, whole checkpoints and start-up against their peers.

    Each figure is a ratio of medians from this run, taken in turns; the peers are torch (numpy
    where it is not installed), memcpy and cp.
    """
    from nola_edge.bench import report
    from nola_edge.bench.checkpoint import checkpoint_figures
    from nola_edge.bench.kernels import kernel_figures
    from nola_edge.bench.startup import startup_figures
    from nola_edge.errors import OutputError
    from nola_edge.files.strict_json import dumps

    for path in (save, plot_path):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise OutputError("its parent folder does not exist; make it first", file=path)
    if plot_path is not None and find_spec("matplotlib") is None:
        raise OutputError("needs matplotlib to be drawn: pip install matplotlib", file=plot_path)
    wanted = suite or _SUITES
    about = report.machine()
    tell = (lambda _: None) if as_json or quiet else say
    tell(report.heading(about))
    figures = []
    with tempfile.TemporaryDirectory(prefix="nola-edge-bench-", dir=folder) as scratch:
        suites = {
            "kernels": lambda: kernel_figures(rounds),
            "checkpoint": lambda: checkpoint_figures(Path(scratch), layers, rounds),
            "startup": lambda: startup_figures(rounds),
        }
        for figure in itertools.chain.from_iterable(suites[name]() for name in wanted):
            figures.append(figure)
            tell(report.row(figure))
    record = report.record(figures, about)
    if save is not None:
        Path(save).write_text(dumps(record, indent=2) + "\n")
    if plot_path is not None:
        report.plot(figures, about, Path(plot_path))
    if as_json:
        ui.print_json(record)
