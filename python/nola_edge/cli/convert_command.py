"""``nola-edge convert``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from nola_edge.cli import output as ui
from nola_edge.cli.layout import whole
from nola_edge.cli.output_names import check_folder_name
from nola_edge.cli.path_types import FILE, FOLDER, PATH
from nola_edge.cli.summary import as_found, bytes_at, show, summary_options
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nola_edge.export.public_nola import ConversionReport

_EPILOG = """\
Example: nola-edge convert ./adapter_model --gpu a100 -o ./my-lora

Example: nola-edge convert model.52580.safetensors --drawn-on cuda --multiprocessors 84
    --threads-per-multiprocessor 1536 --lora-alpha 2 -o ./my-lora

Example: nola-edge convert 20240101_120000.safetensors -o ./my-lora

The basis of such a checkpoint depends on the device that training drew it on. Where nothing
records it, record it on that machine, once (K and the shape of lora_A.weight, for the largest
layer of the file, called LAYER here; nola-edge prints the lines with all of these in place), and
convert with --check:

\b
torch.manual_seed(SEED)  # the tensor LAYER.lora_A.seed
w = torch.empty(K, ROWS, COLS, device="cuda")
w = w.uniform_(-1, 1)[:, 0, 0].cpu().contiguous()
save_file({"LAYER.lora_A.first": w}, "f.safetensors")
"""


@click.command("convert", epilog=_EPILOG)
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=FOLDER, required=True, help="LoRA folder to write.")
@click.option(
    "--drawn-on",
    metavar="DEVICE",
    help="Device on which training drew the basis, as for merge; or cuda, with one of the next "
    "options.",
)
@click.option("--gpu", metavar="NAME", help="The GPU by name: a100, h100-sxm, v100, t4 and others.")
@click.option("--multiprocessors", type=int, metavar="N", help="Or the GPU by its size, and")
@click.option(
    "--threads-per-multiprocessor",
    type=int,
    metavar="N",
    help="both numbers: get_device_properties(0) in torch.cuda has them.",
)
@click.option(
    "--older-torch",
    is_flag=True,
    help="Draw 16-bit numbers on a GPU as torch did before it excluded the upper bound.",
)
@click.option("--lora-alpha", type=float, help="The value used in training, if no file records it.")
@click.option("--rank", type=int, help="Rank of a vision transformer.  [default: as recorded]")
@click.option("--hidden", type=int, help="Width of its MLP.  [default: as timm's models have it]")
@click.option("--check", type=FILE, help="File with recorded numbers of the basis; see below.")
@ui.threads_option
@ui.force_option
@summary_options
def command(as_json: bool, quiet: bool, threads: int | None, **options: Any) -> None:
    """Turn a CHECKPOINT of the public NOLA code into an exact LoRA folder.

    The old name of "export lora CHECKPOINT --drawn-on ...", with a report and with --check. It is
    not needed to merge such a checkpoint: merge, verify and the others take it as an ADAPTER.

    Reads what github.com/UCDvision/NOLA saves for LLaMA (a PEFT folder), GPT-2 and vision
    transformers, as safetensors; a file written by torch.save is refused, with the command that
    converts it to safetensors. The basis is drawn again as torch drew it, on a CPU or a GPU of a
    given size; a checkpoint whose recorded numbers differ is refused.
    """
    from nola_edge.export.public_nola import convert_checkpoint

    checkpoint = options.pop("checkpoint")
    check_folder_name(options["output"])
    with _progress(quiet or as_json) as progress:
        report = convert_checkpoint(checkpoint, num_threads=threads, progress=progress, **options)
    size = bytes_at(report.output)
    show({**as_found(report), "bytes": size}, *_lines(report, size), as_json=as_json, quiet=quiet)


def _lines(report: ConversionReport, size: int) -> Iterator[str]:
    yield (
        f"{printable(report.output, 240)}: exact LoRA of {report.modules} modules, rank "
        f"{report.rank}, {ui.human_bytes(size)}, of {report.coefficients:,} coefficients "
        f"({report.style})"
    )
    if report.left_out:
        yield f"left out: {report.left_out} tensors of the base"
    yield f"basis: drawn on {report.drawn_on}; {_checked(report)}"
    if report.head:
        yield "head: its weight is in head.safetensors; the public code saves no bias"
    if report.how_to_check is not None:
        program = whole(f'python -c "{report.how_to_check}"')
        yield f"to check it, run this where it was trained: {program}"


def _checked(report: ConversionReport) -> str:
    if not report.checked:
        return "not checked, because nothing records it"
    if report.tells_gpus_apart:
        return f"{report.checked} recorded agree"
    return (
        f"{report.checked} recorded agree, but the basis is too small to tell one GPU from another"
    )


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar as soon as it is known how much there is to draw."""
    with contextlib.ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def advance(count: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(ui.Progress(total, "drawing", quiet)))
            bars[0](count)

        yield advance
