"""``nola-edge demo``."""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nola_edge.cli import output as ui

if TYPE_CHECKING:
    from nola_edge.demo.comparison import DemoResult
    from nola_edge.demo.speech import Speech


@click.command("demo", epilog="Example: nola-edge demo --keep ./nola-demo")
@click.option("--keep", help="Keep base, adapter and results in this new folder.")
@ui.json_option
def command(keep: str | None, as_json: bool) -> None:
    """Let a small decoder speak with and without its adapters, then merge, verify and measure.

    Nothing is downloaded and torch is not needed: a decoder of 0.9M parameters and two adapters
    come with the package. The measurement makes larger weights on the spot; it takes a few
    seconds and about 700 MB of disk, in the temporary folder unless --keep is given.
    """
    from nola_edge.demo.comparison import DISK_BYTES, KEPT_FILES, run_demo
    from nola_edge.demo.speech import speak
    from nola_edge.output import AtomicOutput

    def say(text: str) -> None:
        if not as_json:
            click.echo(f"… {text}")

    with contextlib.ExitStack() as stack:
        output = None
        if keep is not None:
            output = AtomicOutput(
                keep,
                directory=True,
                expected_bytes=DISK_BYTES,
                if_exists="choose another name, or remove it",
            )
            folder = stack.enter_context(output).path
        else:
            made = tempfile.TemporaryDirectory(prefix="nola-edge-demo-")
            folder = Path(stack.enter_context(made))
        speeches = speak()
        if not as_json:
            _print_speeches(speeches)
        result = run_demo(folder, say)
        if output is not None:
            for name in KEPT_FILES:
                with output.file(name):  # others have written it; now it is looked for
                    pass
    if as_json:
        ui.print_json({**asdict(result), "speeches": [asdict(speech) for speech in speeches]})
        return
    _print_result(result)
    if keep is not None:
        click.echo(f"\nkept in {keep}: base, adapter, merged, plain")


def _print_speeches(speeches: list[Speech]) -> None:
    from nola_edge.demo.speech import BASE

    size = ui.human_bytes((BASE / "model.safetensors").stat().st_size)
    click.echo(f"A decoder of {size} learned sentences about restaurants; two adapters teach it.")
    shown = ""
    for speech in speeches:
        if speech.adapter != shown:
            shown = speech.adapter
            click.echo(
                f"\n{shown} ({ui.human_bytes(speech.adapter_bytes)}), merged at load in "
                f"{speech.milliseconds:.0f} ms"
            )
        for label, text in (
            ("prompt", speech.prompt),
            ("before", speech.before),
            ("after", speech.after),
        ):
            indent = f"  {label:8}"
            lines = textwrap.wrap(text, 88) or ["(nothing)"]
            click.echo(indent + f"\n{'':10}".join(lines))
        click.echo()


def _print_result(result: DemoResult) -> None:
    click.echo()
    click.echo(
        f"base     {ui.human_bytes(result.base_bytes)} of bf16 weights\n"
        f"adapter  {ui.human_bytes(result.adapter_bytes)}: {result.coefficients:,} coefficients "
        f"for {result.modules} modules, and a seed"
    )
    click.echo(f"\n{'':16} {'time':>9} {'peak memory':>14}   result")
    verdict = "bit for bit what verify expects" if result.identical else "NOT AS EXPECTED"
    plain = f"other bits in {result.differing} tensors (rounds twice)"
    for label, numbers, text in (
        ("nola-edge", result.ours, verdict),
        ("the plain way", result.plain, plain),
    ):
        click.echo(
            f"{label:16} {numbers['seconds']:7.2f} s "
            f"{ui.human_bytes(numbers['peak_bytes']):>14}   {text}"
        )
