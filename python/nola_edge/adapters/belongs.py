"""Whether an adapter's modules have the shapes of a base's weights, whatever file holds these."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.adapters.fingerprints import base_fingerprint, shapes_fingerprint
from nola_edge.adapters.module_names import match_modules
from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.adapters.tensor_parts import BIAS
from nola_edge.adapters.whole_tensors import is_saved
from nola_edge.errors import AdapterError, MismatchError, printable
from nola_edge.files.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from nola_edge.adapters.base import LowRankAdapter

#: An expanded factor is at most as large as the weight, or this, 16 MB.
_MAX_FACTOR_ELEMENTS = 2**22
_OF_RULES = (
    "; --rename (rename= in Python) says which tensors are compared, for every adapter here: "
    "correct it if it is not meant for this one"
)


def location(adapter: LowRankAdapter) -> Path:
    """Return where an adapter came from, to be named in errors."""
    return Path(adapter.path) if adapter.path is not None else Path("<adapter in memory>")


def check_factor_sizes(
    adapter: LowRankAdapter, module: str, shape: tuple[int, ...], file: Path, name: str
) -> None:
    """Refuse a rank that would make the factors of a weight larger than the weight.

    Raises
    ------
    MismatchError
    """
    rank = adapter.rank(module)
    if rank * max(shape) > max(math.prod(shape), _MAX_FACTOR_ELEMENTS):
        raise MismatchError(
            f"has shape {list(shape)}; the rank r = {rank} of {printable(str(location(adapter)))} "
            "would make its factors larger than the weight itself",
            file=file,
            field=name,
        )


def check_shapes(
    adapter: LowRankAdapter, shapes: Mapping[str, tuple[int, int]], file: Path
) -> None:
    """Refuse a base whose modules have other shapes than those the adapter was made for.

    Parameters
    ----------
    adapter : LowRankAdapter
    shapes : mapping
        Module name -> (out_features, in_features) in the base.
    file : Path
        The base.

    Raises
    ------
    MismatchError
    """
    for module, shape in shapes.items():
        _check_shape(adapter, module, shape, file)
    recorded = adapter.shapes_fingerprint
    if recorded not in (None, shapes_fingerprint(shapes)):
        found = sorted({f"{out} x {into}" for out, into in shapes.values()})
        raise MismatchError(
            f"{printable(str(location(adapter)))} was made for modules of other shapes than "
            f"these ({printable(', '.join(found))}), so its random matrices do not belong here; "
            "merge into the base that it was trained on",
            file=file,
            field="shapes_fingerprint",
            value=recorded,
        )


def _check_shape(adapter: LowRankAdapter, module: str, found: tuple[int, int], file: Path) -> None:
    if adapter.accepts(module, *found):
        return
    wanted = adapter.shape(module)
    if wanted is not None and adapter.is_embedding(module) and wanted[0] == found[0]:
        raise MismatchError(
            f"has {found[1]} tokens here, and {printable(str(location(adapter)))} was trained with "
            f"{wanted[1]}: the vocabulary was resized; resize the base's too "
            f"(model.resize_token_embeddings({wanted[1]}), then save_pretrained) and merge into "
            "that",
            file=file,
            field=module,
            value=found[1],
        )
    flip = ""
    if wanted == found[::-1] and not adapter.is_embedding(module):
        flag = "false" if adapter.fan_in_fan_out else "true"
        flip = f", or say how the base stores it: fan_in_fan_out: {flag} in its configuration"
    made = "do not fit" if wanted is None else f"make {wanted[0]} x {wanted[1]}"
    raise MismatchError(
        f"is {found[0]} x {found[1]} here (out x in), but the factors that "
        f"{printable(str(location(adapter)))} has for it {made}; merge into the base that it was "
        f"trained on{flip}",
        file=file,
        field=module,
        value=found,
    )


def check_biases(
    adapter: LowRankAdapter, biases: Iterable[str], tensors: Container[str], file: Path
) -> None:
    """Refuse a base that has biases of which an adapter lost the trained ones.

    PEFT trains and saves those of all adapted layers that have one, or none; those of a module
    that is saved whole are apart.

    Parameters
    ----------
    adapter : LowRankAdapter
    biases : iterable of str
        What biases of its modules' layers are called, if there are any.
    tensors : collection of str
        Those of the base.
    file : Path
        The base.

    Raises
    ------
    AdapterError
    """
    saved = adapter.modules_to_save
    trained = (n for n in adapter.whole_tensors if n.endswith(BIAS) and not is_saved(n, saved))
    if adapter.bias == "none" or any(trained):
        return
    lost = [bias for bias in biases if bias in tensors]
    if lost:
        raise AdapterError(
            f"announces trained biases, but the adapter has none, and {printable(str(file))} has "
            f"{len(lost)} of its layers', such as {printable(lost[0])}; save the adapter again "
            f'where it was trained, or write "none" in {CONFIG_NAME} to merge without them',
            file=location(adapter),
            field="bias",
            value=adapter.bias,
        )


def check_no_magnitudes(adapter: LowRankAdapter, what: str) -> None:
    """Refuse DoRA where only sums are known.

    Parameters
    ----------
    adapter : LowRankAdapter
    what : str
        What only knows sums, and what to do instead, for the message.

    Raises
    ------
    AdapterError
    """
    for module in adapter.modules:
        if adapter.magnitude(module) is not None:
            raise AdapterError(
                f"is DoRA, which scales merged weights; {what}",
                file=location(adapter),
                field="use_dora",
            )


def check_no_stacks(adapter: LowRankAdapter, what: str) -> None:
    """Refuse a LoRA of stacks of experts where weights are found one by one.

    Parameters
    ----------
    adapter : LowRankAdapter
    what : str
        What does not know stacks, and what to do instead, for the message.

    Raises
    ------
    AdapterError
    """
    if adapter.needs_base:
        raise AdapterError(
            f"is a LoRA of stacked experts; {what}",
            file=location(adapter),
            field="target_parameters",
        )


def fingerprint_of_base(adapter: LowRankAdapter, base: Path) -> str:
    """Open a checkpoint, check that an adapter fits it, and return its fingerprint.

    Raises
    ------
    NolaEdgeError
        If the checkpoint cannot be used, lacks a module, or has it in another shape.
    """
    with Checkpoint.open(base) as checkpoint:
        names = match_modules(
            list(adapter.modules),
            checkpoint.tensors,
            adapter=location(adapter),
            base=checkpoint.path,
        )
        targets = [(module, *checkpoint.tensors[name]) for module, name in names.items()]
        shapes: dict[str, tuple[int, int]] = {}
        for module, file, info in targets:
            if len(info.shape) != 2:
                raise MismatchError(
                    f"has shape {list(info.shape)}, not that of a matrix",
                    file=file.path,
                    field=info.name,
                )
            rows, cols = info.shape
            shapes[module] = (cols, rows) if adapter.transposed(module) else (rows, cols)
        check_shapes(adapter, shapes, checkpoint.path)
        return base_fingerprint(targets)


def check_fingerprint(
    adapter: LowRankAdapter, found: str, file: Path, override: str, *, renamed: bool = False
) -> None:
    """Refuse a base that is another than the one an adapter recorded.

    Parameters
    ----------
    adapter : LowRankAdapter
        With a recorded fingerprint.
    found : str
        The base's.
    file : Path
        The base.
    override : str
        How to merge anyway, for the message; empty if that is not possible.
    renamed : bool
        Whether the caller's rules said which tensors are compared.

    Raises
    ------
    MismatchError
    """
    recorded = adapter.base_fingerprint
    if found != recorded:
        advice = _OF_RULES if renamed else ""
        advice += f"; to merge anyway, {override}" if override else ""
        raise MismatchError(
            f"{printable(str(location(adapter)))} was made for a base with fingerprint "
            f"{recorded}, this one has {found} (another model, another dtype, or already "
            f"merged){advice}",
            file=file,
            field="base_fingerprint",
            value=found,
        )
