"""``nola-edge info``."""

from __future__ import annotations

import platform

import click

from nola_edge.cli import output as ui
from nola_edge.cli.layout import say, whole
from nola_edge.cli.summary import summary_options


@click.command("info", epilog="Example: NOLA_EDGE_ISA=avx2 nola-edge info --json")
@summary_options
def command(as_json: bool, quiet: bool) -> None:
    """Show the version, compiler, instruction sets and threads.

    NOLA_EDGE_ISA=portable|avx2|avx512|neon forces a kernel set; all give the same bits.
    """
    from nola_edge import build_info
    from nola_edge.threads import default_threads

    info = build_info()
    info.update(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        processors=default_threads(),
    )
    if as_json:
        ui.print_json(info)
    if as_json or quiet:
        return
    for name, value in info.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        label = whole(f"{name.replace('_', ' '):20}")
        say(f"{label} {'none' if shown in (None, '') else shown}")
