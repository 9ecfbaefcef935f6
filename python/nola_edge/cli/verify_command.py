"""``nola-edge verify``."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.inputs import (
    GGUF_FOUND,
    GGUF_NOTE,
    local_adapters,
    local_base,
    moe_layout_option,
    public_options,
    refuse_to_check_gguf,
    refuse_to_rename_gguf,
    rename_option,
    revision_option,
)
from nola_edge.cli.layout import say
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import as_found, show, summary_options
from nola_edge.cli.types import GGUF_TYPES, check_gguf_options, rounding_option, type_option
from nola_edge.errors import NolaEdgeError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nola_edge.cli.inputs import Given
    from nola_edge.cli.verdict import Verdict
    from nola_edge.merge.audit.report import VerifyReport


@click.command(
    "verify",
    epilog="\b\nExample: nola-edge verify ./merged ./Llama-3-8B ./my-adapter\n"
    "Example: nola-edge verify ./merged ./Llama-3-8B adapters/* --each\n"
    "Example: nola-edge verify ./by-peft ./Llama-3-8B ./my-adapter --tensors-only --ulps 1",
)
@click.argument("merged", type=PATH)
@click.argument("base", type=PATH, required=False, metavar="BASE")
@click.argument("adapters", type=PATH, nargs=-1, metavar="ADAPTER...")
@click.option(
    "--base",
    "named_bases",
    type=PATH,
    metavar="BASE",
    multiple=True,  # so that a second one can be refused
    help="Another way to give BASE.",
)
@click.option(
    "--adapter",
    "named_adapters",
    type=PATH,
    metavar="ADAPTER",
    multiple=True,
    help="Another way to give an ADAPTER, with --base. May be repeated.",
)
@click.option(
    "--each",
    is_flag=True,
    help="MERGED was written by merge --each and has one output per ADAPTER.",
)
@click.option(
    "--tensors-only",
    is_flag=True,
    help="Compare only the tensors, for a checkpoint written by another program.",
)
@click.option(
    "--ulps",
    type=click.IntRange(min=0),
    metavar="N",
    help="Accept rounding differences of up to N ulps in merged weights.  [default: every bit "
    "counts]",
)
@type_option(GGUF_TYPES, help="Type of merged tensors in a GGUF file.  [default: as in MERGED]")
@rounding_option(
    help="How quantised tensors of a GGUF file must be written.  [default: as in MERGED]"
)
@public_options
@moe_layout_option
@revision_option
@rename_option
@ui.check_base_option
@ui.threads_option
@summary_options
def command(
    merged: str,
    base: str | None,
    adapters: tuple[str, ...],
    named_bases: tuple[str, ...],
    named_adapters: tuple[str, ...],
    each: bool,
    ulps: int | None,
    dtype: str | None,
    rounding: str | None,
    drawn_on: str | None,
    lora_alpha: float | None,
    moe_layout: str | None,
    revision: str | None,
    as_json: bool,
    quiet: bool,
    rename: tuple[str, ...],
    **options: Any,
) -> int:
    """Check that MERGED, a checkpoint or GGUF file, is bit for bit what merge writes.

    Takes the same arguments as merge: after "merge BASE ADAPTER -o MERGED", run "verify MERGED BASE
    ADAPTER". Every tensor is merged again and compared, and so is everything else that merge
    writes: headers and metadata, index, configuration, tokenizer, weights of other parts. Hidden
    files are ignored. With --tensors-only, files may be sharded differently. The exit status is 0
    if they are the same, 1 if they differ, 2 if one cannot be read; the differences are listed.

    If merged weights differ, for example because another program merged them, a verdict says what
    went wrong, and a table how far each tensor is off:

    \b
    part    how much of the adapter's change is there: 1 is
            right, 0 dropped, -1 subtracted, 2 merged twice.
            "0.2 of 0.5": a correct merge reaches only 0.5, as
            the dtype rounds the rest away
    ulps    largest difference, in units in the last place;
            for quantised types, in steps of the block's scale
    >1 ulp  share of weights that are off by more than one
    cause   "unknown": none of the known mistakes

    With --ulps N, rounding differences of up to N ulps (or steps) pass. Mistakes never do, however
    small.
    """  # noqa: D301
    from nola_edge.adapters.renames import Renames
    from nola_edge.cli.failure import Failure
    from nola_edge.cli.verdict import Verdict
    from nola_edge.files.signature import is_gguf

    named = bool(named_bases or named_adapters)
    base, adapters = (
        _by_name(base, named_bases, named_adapters) if named else _by_place(base, adapters)
    )
    order = "" if named else "MERGED BASE ADAPTER"
    given = local_adapters(
        adapters, order, drawn_on=drawn_on, lora_alpha=lora_alpha, moe_layout=moe_layout
    )
    base = local_base(base, revision)
    gguf = is_gguf(base)
    check_gguf_options(dtype, rounding, gguf)
    if gguf:
        refuse_to_check_gguf()
        refuse_to_rename_gguf(rename)
    outputs = _outputs(merged, base, given) if each else {merged: given}
    renames = Renames(rename)
    verify: Callable[..., VerifyReport] = (
        partial(_verify_gguf, dtype=dtype, rounding=rounding)
        if gguf
        else partial(_verify_checkpoint, rename=renames)
    )
    found, lines, accepted = [], [], []
    unread: dict[str, Exception] = {}
    for output, terms in outputs.items():
        try:
            report = verify(output, base, terms, quiet, **options)
        except (NolaEdgeError, OSError, click.UsageError) as error:
            if not each:
                raise
            unread[output] = error
            found.append({"output": output, **Failure.of(error).as_json()})
            continue
        result = Verdict(report, len(terms), ulps)
        accepted.append(result.accepted)
        found.append({"output": output, **_as_found(report, result)})
        label = f"{printable(output, 240)}: " if each else ""
        first, *rest = result.lines(options["tensors_only"])
        lines += [label + first, *rest]
    _say_unread(unread, len(outputs))
    if not unread:
        renames.check_used()
    if gguf:
        found = [{**one, **GGUF_FOUND} for one in found]
        lines.append(f"  {GGUF_NOTE}")
    show(found if each else found[0], *lines, as_json=as_json, quiet=quiet)
    return 2 if unread else 0 if all(accepted) else 1


def _by_place(base: str | None, adapters: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return base and adapters from the arguments, which click would require if it could."""
    context = click.get_current_context()
    if base is not None and adapters:
        return base, adapters
    wanted = "base" if base is None else "adapters"
    missing = next(param for param in context.command.params if param.name == wanted)
    raise click.MissingParameter(ctx=context, param=missing)


def _by_name(
    placed: str | None, bases: tuple[str, ...], adapters: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Return base and adapters from the options."""
    if placed is not None:
        raise click.UsageError(
            "BASE and ADAPTER are given by place or as --base and --adapter, not as both: write "
            "MERGED BASE ADAPTER, or MERGED --base BASE --adapter ADAPTER, with an --adapter "
            "before each ADAPTER"
        )
    if not (bases and adapters):
        given, other = ("--base", "--adapter") if bases else ("--adapter", "--base")
        raise click.UsageError(f"{given} needs {other} as well; or write MERGED BASE ADAPTER")
    if len(bases) > 1:
        given = " and ".join(printable(base) for base in bases)
        raise click.UsageError(f"--base is given more than once, as {given}: leave all but one out")
    return bases[0], adapters


def _say_unread(errors: Mapping[str, Exception], outputs: int) -> None:
    """Say on stderr which of some outputs cannot be read, and why.

    What is wrong in the same way with all of them is no fault of theirs, and raised.
    """
    from nola_edge.cli.failure import Failure

    said = {output: Failure.of(error).line for output, error in errors.items()}
    if len(said) == outputs and len(set(said.values())) == 1:
        raise next(iter(errors.values()))
    for output, line in said.items():
        name = printable(output, 240)
        say(f"nola-edge: {line if line.startswith(name) else f'{name}: {line}'}", err=True)


def _outputs(merged: str, base: str, adapters: Given) -> dict[str, Given]:
    """Return the path of each adapter's output, as merge --each names it."""
    from nola_edge.merge.many.output_names import name_outputs

    suffix = "" if os.path.isdir(base) else ".safetensors"
    named = name_outputs(adapters).items()
    return {os.path.join(merged, name + suffix): given for name, given in named}


def _verify_checkpoint(
    merged: str, base: str, adapters: Any, quiet: bool, *, threads: int | None, **options: Any
) -> VerifyReport:
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.files.signature import is_gguf
    from nola_edge.merge.verify import verify_checkpoint

    if is_gguf(merged):
        raise click.UsageError("MERGED is a GGUF file and BASE is not; give two of the same kind")
    with Checkpoint.open(merged) as checkpoint:
        nbytes = checkpoint.nbytes
    with ui.Progress(nbytes, "verifying", quiet) as progress:
        return verify_checkpoint(
            merged, base, adapters, num_threads=threads, progress=progress, **options
        )


def _verify_gguf(
    merged: str,
    base: str,
    adapters: Any,
    quiet: bool,
    *,
    dtype: str | None,
    rounding: str | None,
    threads: int | None,
    tensors_only: bool,
    check_base: bool,
) -> VerifyReport:
    from nola_edge.files.signature import is_gguf
    from nola_edge.gguf import verify_gguf

    if not is_gguf(merged):
        raise click.UsageError("BASE is a GGUF file and MERGED is not; give two of the same kind")
    with ui.Progress(os.path.getsize(merged), "verifying", quiet) as progress:
        return verify_gguf(
            merged,
            base,
            adapters,
            outtype=dtype,
            rounding=rounding,
            num_threads=threads,
            tensors_only=tensors_only,
            progress=progress,
        )


def _as_found(report: VerifyReport, result: Verdict) -> dict[str, Any]:
    found = as_found(report)
    for difference in found["differences"]:
        for name, value in difference.items():
            # NaN and Infinity are no JSON numbers.
            if isinstance(value, float) and not math.isfinite(value):
                difference[name] = None
    said = {"identical": report.identical, "accepted": result.accepted, "verdict": result.text}
    return {**said, **found}
