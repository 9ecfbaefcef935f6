"""``nola-edge pack``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from nola_edge.cli import output as ui
from nola_edge.cli.output_names import check_file_name
from nola_edge.cli.path_types import FILE, PATH
from nola_edge.cli.summary import bytes_at, show, summary_options
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nola_edge.adapters import Adapter, ExpectedResult

    #: What a base is called, if the user says it, and where it is.
    Named = tuple[str | None, str]


@click.command(
    "pack",
    epilog="Example: nola-edge pack ./my-adapter -o my-adapter.nola\n\n"
    "Example: nola-edge pack ./my-adapter --expect ./Llama-3-8B --expect ./llama-3-8b-q8_0.gguf "
    "-o my-adapter.nola",
)
@click.argument("adapter", type=PATH)
@click.option(
    "-o", "--output", type=FILE, required=True, help="File to write, with the suffix .nola."
)
@click.option(
    "--expect",
    metavar="[NAME=]BASE",
    multiple=True,
    help="Record the SHA-256 of what merging into BASE gives, so that every merge into it is "
    "compared with that. NAME is what to call it.  [default: BASE's own name]  May be repeated.",
)
@ui.force_option
@ui.check_base_option
@ui.threads_option
@summary_options
def command(
    adapter: str,
    output: str,
    expect: tuple[str, ...],
    force: bool,
    check_base: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write ADAPTER as one small file, for shipping.

    Every command that takes an adapter folder also takes this file. For an even smaller file with
    fewer bits per coefficient, use nola-edge quantize. To get a folder for PEFT again, use
    nola-edge unpack.

    With --expect, ADAPTER is merged into each BASE, and the result hashed but not written. Whoever
    merges the file into the same base gets just this result, or is refused. What an earlier file
    records of other bases is kept.
    """
    from nola_edge.adapters import Adapter

    check_file_name(output, ".nola", name=adapter)
    bases = _named(expect)
    if not bases:
        _refuse_for_bases()
    loaded = Adapter.load(adapter)
    ui.check_apart(loaded.path, output)
    results = _results(bases, loaded, output, quiet, check_base=check_base, threads=threads)
    loaded.pack(output, force=force, expect=results)
    size = Path(output).stat().st_size
    each = size / loaded.num_coefficients
    expected = Adapter.load(output).expected
    show(
        {
            "output": output,
            "modules": len(loaded.modules),
            "coefficients": loaded.num_coefficients,
            "bytes": size,
            "expected": [result._asdict() for result in expected],
        },
        f"{printable(output, 240)}: {loaded.num_coefficients:,} coefficients for "
        f"{len(loaded.modules)} modules, {ui.human_bytes(size)}, {each:.2f} bytes each in total",
        *(f"  expects of {result.name}: {result.sha256}" for result in expected),
        as_json=as_json,
        quiet=quiet,
    )


def _refuse_for_bases() -> None:
    """Refuse options that mean nothing without a base."""
    context = click.get_current_context()
    for option, name in (("--threads", "threads"), ("--check-base", "check_base")):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option} is for merging: give it with --expect BASE, or leave it out"
            )


def _named(expect: Sequence[str]) -> list[Named]:
    """Split what is given for bases; an existing path wins over a name's reading."""
    from nola_edge.merge.expect import name_of_base

    bases: list[Named] = []
    names: set[str] = set()
    for text in expect:
        name, equals, base = text.partition("=")
        found = (name, base) if equals and not os.path.exists(text) else (None, text)
        if not found[1] or found[0] == "":
            raise click.UsageError(
                f"--expect: '{printable(text)}' lacks a name or a base; write BASE or NAME=BASE"
            )
        called = name_of_base(found[1], found[0])
        if called in names:
            raise click.UsageError(
                f"--expect: two bases are called {printable(called)}; name them: --expect NAME=BASE"
            )
        names.add(called)
        bases.append(found)
    return bases


def _results(
    bases: Sequence[Named],
    adapter: Adapter,
    output: str,
    quiet: bool,
    *,
    check_base: bool,
    threads: int | None,
) -> Iterator[ExpectedResult]:
    """Merge into one base after the other."""
    from nola_edge.files.atomic import AtomicOutput
    from nola_edge.files.hub import base_path
    from nola_edge.files.signature import is_gguf
    from nola_edge.gguf import expect_gguf
    from nola_edge.merge.expect import expect_checkpoint, name_of_base

    for given, base in bases:
        name, path = name_of_base(base, given), base_path(base)
        AtomicOutput(output, inputs=[path], directory=False).check_apart()
        with ui.Progress(bytes_at(path), "merging", quiet) as progress:
            if is_gguf(path):
                yield expect_gguf(path, adapter, name=name, num_threads=threads, progress=progress)
            else:
                yield expect_checkpoint(
                    path,
                    adapter,
                    name=name,
                    num_threads=threads,
                    check_base=check_base,
                    progress=progress,
                )
