"""``nola-edge merge``."""

from __future__ import annotations

import os
from typing import Any

import click

from nola_edge.cli import merging
from nola_edge.cli import output as ui
from nola_edge.cli.inputs import (
    local_adapters,
    local_base,
    moe_layout_option,
    public_options,
    refuse_to_check_gguf,
    refuse_to_rename_gguf,
    rename_option,
    revision_option,
)
from nola_edge.cli.output_names import check_file_name, check_folder_name
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import summary_options
from nola_edge.cli.types import GGUF_TYPES, check_gguf_options, rounding_option, type_option
from nola_edge.errors import OutputError


@click.command(
    "merge",
    epilog="Example: nola-edge merge ./Llama-3-8B ./my-adapter -o ./merged\n\n"
    "Example: nola-edge merge ./Llama-3-8B adapters/* --each -o ./merged\n\n"
    "Example: nola-edge merge ./Qwen2.5-VL ./my-lora -o ./merged --rename model.visual=visual "
    "--rename model.language_model=model\n\n"
    "Example: srun -n 8 nola-edge merge ./base adapters/* --each --shard auto -o /shared/merged",
)
@click.argument("base", type=PATH)
@click.argument("adapters", type=PATH, nargs=-1, required=True, metavar="ADAPTER...")
@click.option("-o", "--output", type=PATH, required=True, help="File or folder to write.")
@click.option(
    "--each",
    is_flag=True,
    help="Write one output per ADAPTER, OUTPUT/name, and read BASE only once.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="With --each: write every N-th output, as process I of N, counted from 0. 'auto' takes "
    "both from torchrun, Slurm's srun or Open MPI; processes of torchrun share a machine's "
    "processors.",
)
@click.option(
    "--skip-existing",
    is_flag=True,
    help="With --each: skip outputs that exist already, for example after an interrupted job. "
    "Their headers are compared with what would be written, not their contents: see verify.",
)
@type_option(GGUF_TYPES, help="Type of merged tensors in a GGUF file.  [default: as in BASE]")
@rounding_option(
    help="How quantised tensors of a GGUF file are written: to the nearest codes, which gives the "
    "bytes of llama.cpp's quantiser, or with each block's change amplified until as much of it is "
    "there as should be.  [default: nearest]"
)
@click.option(
    "--expect",
    metavar="HASH",
    help="Refuse a result with another SHA-256 than this one (see nola-edge hash), before it is in "
    "place.",
)
@ui.force_option
@public_options
@moe_layout_option
@revision_option
@rename_option
@ui.check_base_option
@ui.check_result_option
@ui.threads_option
@summary_options
def command(
    base: str,
    adapters: tuple[str, ...],
    output: str,
    each: bool,
    shard: str | None,
    skip_existing: bool,
    dtype: str | None,
    rounding: str | None,
    expect: str | None,
    force: bool,
    drawn_on: str | None,
    lora_alpha: float | None,
    moe_layout: str | None,
    revision: str | None,
    rename: tuple[str, ...],
    check_base: bool,
    check_result: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge one or more ADAPTERs into BASE and write the result.

    BASE is a safetensors file, a Hugging Face folder or Hub id, or a GGUF file; the output has the
    same layout. An ADAPTER is a folder, a packed file or a Hub id; each may have a weight:
    ADAPTER=0.5. Several are summed in fp32, in the order given, which is part of the bits, and
    rounded once. At every moment the output is either absent or complete.

    With --each they are not summed: OUTPUT is a folder in which each adapter gets an output under
    its own name, with the same bytes as if it were merged alone. All are checked first. With
    --shard, any number of processes on one or more machines divide the work without communicating.

    A packed ADAPTER may record what it must give with BASE. Merged alone, with weight 1 and without
    options that change the result, it is then compared with that before it is in place.

    Modules are found by their names, or by the names in BASE's files that an adapter records. If
    neither matches, use --rename: where a module's name contains NEW, as whole parts between dots,
    BASE has OLD. The longest NEW is tried first.

    In a GGUF file, quantised tensors are dequantised, merged and quantised again, and the summary
    says how much of the adapter's change survives. --rounding amplified keeps more where changes
    are small; --outtype gives merged tensors another type.
    """
    from nola_edge.files.signature import is_gguf

    gguf = is_gguf(base)
    _check_each(each, shard, skip_existing, gguf)
    _check_expected(expect, each)
    check_gguf_options(dtype, rounding, gguf)
    _check_output_name(base, output, gguf, each)
    # Before a download of the base.
    given = local_adapters(
        adapters, drawn_on=drawn_on, lora_alpha=lora_alpha, moe_layout=moe_layout
    )
    base = local_base(base, revision)
    if gguf:
        refuse_to_check_gguf()
        refuse_to_rename_gguf(rename)
        merging.merge_gguf_file(
            base,
            given,
            output,
            as_json,
            quiet,
            outtype=dtype,
            rounding=rounding or "nearest",
            force=force,
            num_threads=threads,
            expect=expect,
            check_result=check_result,
        )
        return
    options: dict[str, Any] = {
        "force": force,
        "num_threads": threads,
        "check_base": check_base,
        "check_result": check_result,
        "rename": rename,
    }
    if each:
        options.update(shard=shard, skip_existing=skip_existing)
        merging.merge_into_each(base, given, output, as_json, quiet, **options)
    else:
        merging.merge_into_one(base, given, output, as_json, quiet, expect=expect, **options)


def _check_expected(expect: str | None, each: bool) -> None:
    """Refuse a hash for several outputs, or one that is none, before anything is downloaded."""
    from nola_edge.files.content_hash import expected_hash

    if each and expect is not None:
        raise click.UsageError("--expect is for one output; merge the adapters one at a time")
    expected_hash(expect)


def _check_each(each: bool, shard: str | None, skip_existing: bool, gguf: bool) -> None:
    """Refuse options that mean nothing with --each, or without it."""
    if each and gguf:
        raise click.UsageError(
            "--each is for checkpoints; merge adapters into a GGUF file one at a time"
        )
    for option, given in (("--shard", shard is not None), ("--skip-existing", skip_existing)):
        if given and not each:
            raise click.UsageError(
                f"{option} needs --each; without it there is only one output, written by one "
                "process and put in place with one rename"
            )


def _check_output_name(base: str, output: str, gguf: bool, each: bool) -> None:
    """Refuse a name that says another kind of output than BASE has."""
    from nola_edge.files.hub import is_id
    from nola_edge.files.input_file import is_here

    here = is_here(base)
    if each:
        check_folder_name(
            output, "with --each the output is a folder that holds one output per ADAPTER"
        )
    elif gguf:
        check_file_name(output, ".gguf", "the output is a GGUF file, like BASE", base)
    elif os.path.isdir(base) or (not here and is_id(base)):
        check_folder_name(output, "the output is a folder, like BASE")
    elif here:
        try:
            check_file_name(output, ".safetensors", "the output is a file, like BASE", base)
        except OutputError:
            _check_is_checkpoint(base)
            raise


def _check_is_checkpoint(base: str) -> None:
    """Refuse a base that cannot be read: what to call the output would be the wrong advice."""
    from nola_edge.files.checkpoint import Checkpoint

    Checkpoint.open(base).close()
