"""Checkpoints of the public NOLA code as exact LoRA folders, with the record of their basis."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge import arguments, ops
from nola_edge.adapters.public_nola.adapter import PublicNolaAdapter
from nola_edge.adapters.public_nola.contents import factors_of
from nola_edge.adapters.public_nola.records import check_records, how_to_record
from nola_edge.errors import ArgumentError, printable
from nola_edge.export.lora import export_lora
from nola_edge.threads import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable

_FLOAT_BYTES = 4


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
        Whether a classifier's weight was written beside the LoRA, to ``head.safetensors``.
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

    :func:`nola_edge.export_lora` of :func:`nola_edge.load_adapter` with ``drawn_on`` writes the
    same; this one also compares recorded numbers, and reports.

    Parameters
    ----------
    path : path
        As for :func:`nola_edge.load_adapter`.
    output : path
        The LoRA folder to write.
    drawn_on : str, optional
        As for :func:`nola_edge.load_adapter`, or ``"cuda"`` with one of the next three.
    gpu : str, optional
        Its name, one of :data:`nola_edge.adapters.public_nola.devices.GPUS`.
    multiprocessors, threads_per_multiprocessor : int, optional
        Its size, instead of its name.
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
    given = _drawn_on(drawn_on, gpu, multiprocessors, threads_per_multiprocessor, older_torch)
    adapter = PublicNolaAdapter.load(
        path, drawn_on=given, lora_alpha=lora_alpha, rank=rank, hidden=hidden
    )
    contents, factors = adapter.config, factors_of(adapter.modules)
    checked, telling = _compared(adapter, check)
    adapter.drawn.num_threads = num_threads
    if progress is not None:
        adapter.drawn.advance = _advancing(progress, _FLOAT_BYTES * adapter.drawn.elements)
    export_lora(adapter, None, output, force=force)
    return ConversionReport(
        output=output,
        style=contents.kind,
        drawn_on=str(adapter.drawn_on),
        modules=len(adapter.modules),
        rank=Counter(layer.rank for layer in adapter.modules.values()).most_common(1)[0][0],
        coefficients=sum(factor.num_basis for factor in factors),
        checked=checked,
        tells_gpus_apart=telling,
        how_to_check=None if checked else how_to_record(factors, adapter.drawn_on.device),
        left_out=contents.base_tensors,
        head=bool(adapter.unplaced),
    )


def _compared(adapter: PublicNolaAdapter, records: Path | None) -> tuple[int, bool]:
    """Return how many bases agree with recorded numbers, and whether those tell GPUs apart."""
    checked = adapter.config.checked
    if records is None:
        return checked, True
    if checked:
        raise ArgumentError(
            "is not needed: this checkpoint records its basis itself", field="check"
        )
    factors = factors_of(adapter.modules)
    return ops.in_specified_environment(lambda: check_records(records, factors, adapter.drawn_on))


def _advancing(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Return what counts the elements that all threads draw."""
    lock = threading.Lock()

    def advance(elements: int) -> None:
        with lock:
            progress(_FLOAT_BYTES * elements, total)

    return advance


def _drawn_on(
    device: str | None,
    gpu: str | None,
    multiprocessors: int | None,
    threads_per_multiprocessor: int | None,
    older_torch: bool,
) -> str | None:
    """Say in one text where a basis was drawn, as :meth:`DrawnOn.parse` reads it; None if unsaid.

    Raises
    ------
    ArgumentError
        If the ways to say it contradict each other.
    """
    size = (multiprocessors, threads_per_multiprocessor)
    by_size = None if size == (None, None) else f"{multiprocessors}x{threads_per_multiprocessor}"
    said = [text for text in (device, gpu, by_size) if text is not None]
    if device == "cuda" and len(said) > 1:
        said.remove(device)
    if len(said) > 1:
        raise ArgumentError(f"is given twice: {printable(' and '.join(said))}", field="drawn_on")
    if older_torch and said in ([], ["cpu"]):
        raise ArgumentError("is about 16-bit numbers drawn on a GPU", field="older_torch")
    return said[0] + ",older-torch" * older_torch if said else None
