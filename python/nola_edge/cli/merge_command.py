"""``nola-edge merge``."""

from __future__ import annotations

from typing import Any

import click

from nola_edge.cli import merging
from nola_edge.cli import output as ui


@click.command(
    "merge",
    epilog="\b\nExample: nola-edge merge ./Llama-3-8B ./my-adapter -o ./merged\n"
    "Example: nola-edge merge ./Llama-3-8B adapters/* --each -o ./merged\n"
    "Example: srun -n 8 nola-edge merge ./base adapters/* --each --shard auto -o /shared/merged",
)
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("-o", "--output", required=True, help="File or folder to write.")
@click.option(
    "--each", is_flag=True, help="Write one output per ADAPTER, OUTPUT/name; read BASE once."
)
@click.option(
    "--shard",
    metavar="I/N",
    help="With --each: as process I of N, counted from 0, write every N-th output. 'auto' asks "
    "torchrun, Slurm's srun or Open MPI; torchrun's processes divide a machine's processors.",
)
@click.option(
    "--skip-existing",
    is_flag=True,
    help="With --each: leave out what is there already, as after an interrupted job.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]),
    help="Type of merged tensors in a GGUF file.  [default: as in BASE]",
)
@ui.force_option
@ui.any_base_option
@ui.threads_option
@ui.json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
def command(
    base: str,
    adapters: tuple[str, ...],
    output: str,
    each: bool,
    shard: str | None,
    skip_existing: bool,
    outtype: str | None,
    force: bool,
    any_base: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge one ADAPTER or several into BASE and write the result.

    BASE is a safetensors file, a Hugging Face folder or a GGUF file; the output has its layout. An
    ADAPTER is a folder, a packed file or a Hub id; with several, each may have a weight:
    ADAPTER=0.5. They are summed in fp32 and rounded once. The output is absent or complete at
    every instant.

    With --each they are not summed: OUTPUT is a folder in which every adapter gets an output under
    its own name, the same bytes as if it were merged alone. All are checked first. Any number of
    processes, on one machine or many, divide the work by --shard and need no contact.

    In a GGUF file, quantised tensors are dequantised, merged and quantised anew, and the summary
    says how much of the adapter is left then; --outtype gives merged tensors another type.
    """
    from nola_edge.gguf.file import is_gguf

    if not each:
        for option, value in (("--shard", shard), ("--skip-existing", skip_existing or None)):
            if value is not None:
                raise click.UsageError(
                    f"{option} is for the outputs of --each; without it there is one output, which "
                    "one process writes and puts in place by one rename"
                )
    gguf = is_gguf(base)
    if gguf != output.endswith(".gguf") and output.endswith((".gguf", ".safetensors")):
        raise click.UsageError(
            f"the output is {'a' if gguf else 'no'} GGUF file, as BASE is; choose another name"
        )
    if gguf and each:
        raise click.UsageError("--each is for checkpoints; merge into a GGUF file one by one")
    if outtype is not None and not gguf:
        raise click.UsageError("--outtype is for GGUF files; a checkpoint keeps its dtypes")
    given = [ui.parse_adapter(text) for text in adapters]
    if gguf:
        merging.merge_gguf_file(
            base,
            given,
            output,
            as_json,
            quiet,
            outtype=outtype and outtype.upper(),
            force=force,
            num_threads=threads,
        )
        return
    options: dict[str, Any] = {
        "force": force,
        "num_threads": threads,
        "check_base": not any_base,
    }
    if each:
        options.update(shard=shard, skip_existing=skip_existing)
        merging.merge_into_each(base, given, output, as_json, quiet, **options)
    else:
        merging.merge_into_one(base, given, output, as_json, quiet, **options)
