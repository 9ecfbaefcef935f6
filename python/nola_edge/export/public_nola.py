"""Convert a checkpoint of the public NOLA code into an exact LoRA folder."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nola_edge import arguments, ops
from nola_edge.adapters.nola_config import MAX_RANK
from nola_edge.adapters.peft_folder import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    adapter_obstacle,
    write_config,
    write_tensors,
)
from nola_edge.adapters.public_nola.checkpoint_file import Source
from nola_edge.adapters.public_nola.cuda_generator import drawn_at_once
from nola_edge.adapters.public_nola.devices import DrawnOn, drawn_on_of
from nola_edge.adapters.public_nola.draw import regenerate
from nola_edge.adapters.public_nola.kinds import plan_conversion
from nola_edge.adapters.public_nola.records import check_records, how_to_record
from nola_edge.errors import AdapterError, ArgumentError
from nola_edge.export.lora_fields import lora_fields
from nola_edge.files.atomic import AtomicOutput
from nola_edge.threads import check_threads
from nola_edge.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.contents import Factor, Plan

#: Holds ``head.weight``, the trained classifier of a vision transformer.
HEAD_NAME = "head.safetensors"
#: Elements of a basis; the public code would need four terabytes for one as large.
_MAX_BASIS = 1 << 40
_FLOAT_BYTES = 4
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class ConversionReport:
    """What was converted.

    Attributes
    ----------
    output : Path
    style : str
        The kind of checkpoint.
    drawn_on : str
        Where the basis was drawn.
    modules : int
        Layers with a LoRA.
    rank : int
        The LoRA's, of most layers.
    coefficients : int
    checked : int
        Recorded bases that agree with the regenerated ones.
    tells_gpus_apart : bool
        Whether those would have differed on a GPU of another size.
    how_to_check : str or None
        Python that records a basis, where nothing was checked.
    left_out : int
        Tensors of the base that the checkpoint holds too.
    head : bool
        Whether a classifier's weight was written beside the LoRA, to :data:`HEAD_NAME`.
    """

    output: Path
    style: str
    drawn_on: str
    modules: int
    rank: int
    coefficients: int
    checked: int
    tells_gpus_apart: bool
    how_to_check: str | None
    left_out: int
    head: bool


def convert_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    drawn_on: str | None = None,
    gpu: str | None = None,
    multiprocessors: int | None = None,
    threads_per_multiprocessor: int | None = None,
    older_torch: bool = False,
    lora_alpha: float | None = None,
    rank: int | None = None,
    hidden: int | None = None,
    check: str | Path | None = None,
    num_threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert a checkpoint of https://github.com/UCDvision/NOLA into an exact LoRA.

    B @ A * lora_alpha / r is what the public forward adds to a layer's weight; nothing is
    decomposed or approximated. The basis is regenerated, a piece at a time, as torch drew it.

    Parameters
    ----------
    path : path
        A safetensors file, or a PEFT folder with one. A file of ``torch.save`` is refused with the
        command that makes a safetensors file of it.
    output : path
        The LoRA folder to write.
    drawn_on : {"cpu", "cuda"}, optional
        Where training drew the basis. Needed unless the GPU is given or the checkpoint says it.
    gpu : str, optional
        Its name, one of :data:`nola_edge.adapters.public_nola.devices.GPUS`.
    multiprocessors, threads_per_multiprocessor : int, optional
        Its size, instead of its name: both from ``torch.cuda.get_device_properties``.
    older_torch : bool
        16-bit numbers on a GPU as torch drew them before it excluded the upper bound (issue 96947).
    lora_alpha : float, optional
        What training was given, where no configuration says it.
    rank, hidden : int, optional
        Of a vision transformer: the rank (default: found by the recorded values) and the width of
        the MLP (default: as timm's models of that embedding have it).
    check : path, optional
        A safetensors file with recorded numbers of the basis
        (:mod:`nola_edge.adapters.public_nola.records`).
    num_threads : int, optional
        Default: the processors this process may use. The bytes do not depend on it.
    force : bool
        Replace an existing output.
    progress : callable, optional
        Called, from any thread, with the bytes of basis drawn since the last call, and in all.

    Returns
    -------
    ConversionReport

    Raises
    ------
    MismatchError
        If recorded numbers are not those of the basis; nothing is written.
    NolaEdgeError
        If an argument or the checkpoint cannot be used, or the output cannot be written.
    """
    check_threads(num_threads)
    path, output = arguments.path("path", path), arguments.path("output", output)
    check = None if check is None else arguments.path("check", check)
    given = drawn_on_of(drawn_on, gpu, multiprocessors, threads_per_multiprocessor, older_torch)
    with Source(path) as source:
        plan = ops.in_specified_environment(  # recorded numbers are compared
            lambda: plan_conversion(
                source, drawn_on=given, lora_alpha=lora_alpha, rank=rank, hidden=hidden
            )
        )
        device = plan.drawn_on or given
        if device is None:
            raise ArgumentError(
                "is not said by the checkpoint; give 'cpu', or the GPU that training ran on "
                "(--drawn-on cpu, --gpu NAME)",
                field="drawn_on",
            )
        _check_sizes(source, plan, device)
        checked, telling = plan.checked, True
        if check is not None:
            if plan.checked:
                raise ArgumentError(
                    "is not needed: this checkpoint records its basis itself", field="check"
                )
            file = check
            checked, telling = ops.in_specified_environment(
                lambda: check_records(file, plan.factors, device)
            )
        inputs = [path, source.path, *([check] if check is not None else [])]
        nbytes = sum(la.rank * (la.out_features + la.in_features) for la in plan.layers)
        with AtomicOutput(
            output,
            inputs=inputs,
            force=force,
            directory=True,
            expected_bytes=4 * nbytes,
            replaces=adapter_obstacle("LORA"),
        ) as out:
            with out.file(WEIGHTS_NAME) as weights:
                write_tensors(weights, _tensors(plan, device, num_threads, progress))
            with out.file(CONFIG_NAME) as config:
                write_config(config, _config(plan))
            if plan.head is not None:
                with out.file(HEAD_NAME) as head:
                    write_tensors(head, {"head.weight": plan.head})
            source.check_unchanged()
    return ConversionReport(
        output=output,
        style=plan.style,
        drawn_on=str(device),
        modules=len(plan.layers),
        rank=_most_common(layer.rank for layer in plan.layers),
        coefficients=sum(factor.num_basis for factor in plan.factors),
        checked=checked,
        tells_gpus_apart=telling,
        how_to_check=None if checked else how_to_record(plan.factors, device.device),
        left_out=plan.left_out,
        head=plan.head is not None,
    )


def _check_sizes(source: Source, plan: Plan, device: DrawnOn) -> None:
    """Refuse what could not have been trained, or was not drawn as the generators here draw."""
    for layer in plan.layers:
        if layer.rank > MAX_RANK:
            raise AdapterError(
                f"has rank {layer.rank}, more than {MAX_RANK}", file=source.path, field=layer.module
            )
    for factor in plan.factors:
        size = factor.draw.size
        if size > _MAX_BASIS:
            raise AdapterError(
                f"has a basis of {size} elements, which no machine could have trained with",
                file=source.path,
                field=factor.name,
            )
        itemsize = factor.coefficients.dtype.itemsize
        if device.device == "cuda" and not drawn_at_once(size, itemsize):
            raise AdapterError(
                f"has a basis of {size * itemsize} bytes; beyond 2**31 - 1 torch draws on a GPU in "
                "parts, which is not supported",
                file=source.path,
                field=factor.name,
            )


class _Progress:
    """Counts what all threads have drawn."""

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._total = total * _FLOAT_BYTES
        self._report = report
        self._lock = threading.Lock()

    def advance(self, elements: int) -> None:
        if self._report is not None:
            with self._lock:
                self._report(elements * _FLOAT_BYTES, self._total)


def _regenerated(
    plan: Plan,
    device: DrawnOn,
    num_threads: int | None,
    report: Callable[[int, int], None] | None,
) -> dict[str, NDArray[np.float32]]:
    groups: dict[object, list[Factor]] = defaultdict(list)
    for factor in plan.factors:
        groups[factor.basis].append(factor)
    progress = _Progress(sum(group[0].draw.size for group in groups.values()), report)
    matrices: dict[str, NDArray[np.float32]] = {}

    def work(group: Sequence[Factor]) -> None:
        matrices.update(
            ops.in_specified_environment(lambda: regenerate(group, device, progress.advance))
        )

    with Workers(num_threads) as workers:
        for group in groups.values():
            workers.submit(work, group)
    return matrices


def _tensors(
    plan: Plan,
    device: DrawnOn,
    num_threads: int | None,
    report: Callable[[int, int], None] | None,
) -> dict[str, NDArray[Any]]:
    matrices = _regenerated(plan, device, num_threads, report)
    tensors: dict[str, NDArray[Any]] = {}
    for layer in plan.layers:
        for label, values in zip("AB", layer.assemble(matrices), strict=True):
            tensors[f"{PREFIX}{layer.module}.lora_{label}.weight"] = values
    return tensors


def _config(plan: Plan) -> dict[str, Any]:
    """Return PEFT's configuration: what most layers have, and patterns for the others."""
    rank = _most_common(layer.rank for layer in plan.layers)
    alpha = _most_common(layer.total_alpha for layer in plan.layers)
    fields = lora_fields(
        r=rank,
        lora_alpha=alpha,
        target_modules=(layer.module for layer in plan.layers),
        fan_in_fan_out=plan.fan_in_fan_out,
    )
    return {
        **plan.kept,
        **fields,
        "rank_pattern": {la.module: la.rank for la in plan.layers if la.rank != rank},
        "alpha_pattern": {
            la.module: la.total_alpha for la in plan.layers if la.total_alpha != alpha
        },
    }


def _most_common(values: Iterable[_Number]) -> _Number:
    return Counter(values).most_common(1)[0][0]
