"""``nola-edge export``."""

from __future__ import annotations

import click

from nola_edge.cli import output as ui
from nola_edge.cli.help import Group
from nola_edge.cli.inputs import (
    GGUF_FOUND,
    GGUF_NOTE,
    local_adapters,
    local_base,
    public_options,
    refuse_to_check_gguf,
    refuse_to_rename_gguf,
    rename_option,
    revision_option,
)
from nola_edge.cli.output_names import check_file_name, check_folder_name
from nola_edge.cli.path_types import FILE, FOLDER, PATH
from nola_edge.cli.summary import bytes_at, show, summary_options
from nola_edge.cli.types import type_option
from nola_edge.errors import printable


def _refuse_layout(_context: click.Context, _option: click.Parameter, layout: str | None) -> None:
    if layout is not None:
        raise click.UsageError(
            "--moe-layout is for LoRAs of stacked experts, and they cannot be exported: merge them "
            "(nola-edge merge has --moe-layout); with other adapters, leave it out"
        )


#: For whoever knows it from merge: "no such option" would not say what to do.
_no_moe_layout = click.option(
    "--moe-layout", hidden=True, expose_value=False, callback=_refuse_layout
)


@click.group("export", cls=Group)
def command() -> None:
    """Write an adapter in the format of another program."""


@command.command(
    "lora",
    epilog="Example: nola-edge export lora ./my-adapter --base ./Llama-3-8B -o ./my-lora\n\n"
    "Example: nola-edge export lora ./public-checkpoint --drawn-on a100 -o ./my-lora",
)
@click.argument("adapters", type=PATH, nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "--base",
    type=PATH,
    help="The checkpoint, or its Hub id. Needed unless the adapter records the sizes of its "
    "modules.",
)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write.")
@type_option(
    ("F32", "F16", "BF16"),
    default="f32",
    show_default=True,
    help="Type of A and B; anything but f32 rounds them.",
)
@ui.force_option
@public_options
@_no_moe_layout
@revision_option
@rename_option
@ui.check_base_option
@summary_options
def lora(
    adapters: tuple[str, ...],
    base: str | None,
    output: str,
    dtype: str,
    force: bool,
    drawn_on: str | None,
    lora_alpha: float | None,
    revision: str | None,
    rename: tuple[str, ...],
    check_base: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an exact LoRA folder for PEFT, vLLM and others.

    A and B are the factors themselves: nothing is decomposed. Several ADAPTERs, of any method,
    become one LoRA; each may have a weight (ADAPTER=0.5).
    """
    from nola_edge.export.lora import HEAD_NAME, export_lora

    check_folder_name(output)
    if revision is not None and base is None:
        raise click.UsageError("--revision is for a base on the Hub, and no --base was given")
    # Before a download of the base.
    given = local_adapters(adapters, drawn_on=drawn_on, lora_alpha=lora_alpha)
    if base is not None:
        base = local_base(base, revision)
    path = export_lora(
        given, base, output, dtype=dtype, force=force, check_base=check_base, rename=rename
    )
    size = bytes_at(path)
    show(
        {"output": output, "dtype": dtype, "bytes": size},
        f"{printable(path, 240)}: exact LoRA, {ui.human_bytes(size)}",
        *[f"{HEAD_NAME}: the trained head's weight, without a bias"] * (path / HEAD_NAME).exists(),
        as_json=as_json,
        quiet=quiet,
    )


@command.command(
    "gguf-lora",
    epilog="Example: nola-edge export gguf-lora ./my-adapter --base ./q4_k_m.gguf -o lora.gguf",
)
@click.argument("adapters", type=PATH, nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "--base",
    type=PATH,
    required=True,
    help="The GGUF file it will be loaded with, or the Hugging Face folder or Hub id of that "
    "model.",
)
@click.option(
    "-o", "--output", type=FILE, required=True, help="File to write, with the suffix .gguf."
)
@type_option(
    ("F32", "F16"), default="f32", show_default=True, help="Type of A and B; f16 rounds them."
)
@ui.force_option
@public_options
@_no_moe_layout
@revision_option
@rename_option
@ui.check_base_option
@summary_options
def gguf_lora(
    adapters: tuple[str, ...],
    base: str,
    output: str,
    dtype: str,
    force: bool,
    drawn_on: str | None,
    lora_alpha: float | None,
    revision: str | None,
    rename: tuple[str, ...],
    check_base: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an exact LoRA file for llama.cpp and Ollama.

    llama-cli -m BASE --lora FILE loads it beside a base of any quantisation, which is not changed;
    in an Ollama Modelfile the line is ADAPTER FILE. Several ADAPTERs, each with a weight if you
    like (ADAPTER=0.5), become one LoRA.
    """
    from nola_edge.export.gguf_lora import export_gguf_lora
    from nola_edge.files.signature import is_gguf

    gguf = is_gguf(base)
    if gguf:
        refuse_to_check_gguf()
        refuse_to_rename_gguf(rename)
    check_file_name(output, ".gguf", name=adapters[0])
    path = export_gguf_lora(
        local_adapters(adapters, drawn_on=drawn_on, lora_alpha=lora_alpha),
        local_base(base, revision),
        output,
        dtype=dtype,
        force=force,
        check_base=check_base,
        rename=rename,
    )
    size = bytes_at(path)
    show(
        {"output": output, "dtype": dtype, "bytes": size, **(GGUF_FOUND if gguf else {})},
        f"{printable(path, 240)}: exact LoRA for llama.cpp, {ui.human_bytes(size)}",
        *[f"  {GGUF_NOTE}"] * gguf,
        as_json=as_json,
        quiet=quiet,
    )
