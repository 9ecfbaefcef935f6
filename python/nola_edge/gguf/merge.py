"""Write a GGUF file with adapters merged in: everything is checked first."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.adapters.expected import GGUF
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.content_hash import expected_hash
from nola_edge.files.gguf import GgufFile, gguf_model_obstacle
from nola_edge.files.obstacles import other_tensors
from nola_edge.files.sinks import new_file
from nola_edge.gguf.layout import Layout
from nola_edge.gguf.plan import GgufPlan, base_fingerprint_of, plan_gguf
from nola_edge.gguf.quantization import NEAREST
from nola_edge.gguf.requantize import Requantized
from nola_edge.gguf.survival import Survival, added_up
from nola_edge.merge.expectation import expectation
from nola_edge.merge.plan import load_adapters
from nola_edge.threads import check_threads
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nola_edge.files.obstacles import Obstacle
    from nola_edge.files.sinks import Sink
    from nola_edge.merge.result import Piece, Result


@dataclass(frozen=True)
class GgufReport:
    """What :func:`merge_gguf` wrote.

    Attributes
    ----------
    output : Path
    tensors, merged : int
        Tensors written; of these, how many were merged.
    nbytes : int
        Bytes of the file.
    seconds : float
    types : tuple of str
        Of merged tensors.
    rounding : str
        How quantised ones were written.
    survival : dict
        Tensor name -> :class:`Survival` of its change, for tensors written as a quantised type.
    expected_of : str or None
        Name of the base of which the adapter expects just this result; None if there was nothing
        to compare it with.
    notes : tuple of str
        What to know about the result, one line each.
    """

    output: Path
    tensors: int
    merged: int
    nbytes: int
    seconds: float
    types: tuple[str, ...] = ()
    rounding: str = NEAREST
    survival: dict[str, Survival] = field(default_factory=dict, repr=False)
    expected_of: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def overall(self) -> Survival:
        """Return the survival of all deltas together."""
        return added_up(self.survival.values())


def merge_gguf(
    base: str | Path,
    adapter: Any,
    output: str | Path,
    *,
    outtype: str | None = None,
    rounding: str = NEAREST,
    force: bool = False,
    num_threads: int | None = None,
    expect: str | None = None,
    check_result: bool = True,
    progress: Callable[[int], None] | None = None,
) -> GgufReport:
    """Merge adapters into a GGUF file and write the result.

    Tensors of type F32, F16 and BF16 are merged as in a checkpoint, with one rounding. Q8_0, Q4_0,
    Q4_1, Q5_0 and Q5_1 are dequantised, merged in fp32 and quantised again; the report says how
    much of the change survives. Everything else is copied.

    Parameters
    ----------
    base : path
        A GGUF file, version 2 or 3, of an architecture in :mod:`nola_edge.gguf.architectures`.
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Trained on the Hugging Face model that the base was converted from. Its fingerprint cannot
        be compared here, but shapes are.
    output : path
        Must not exist, unless `force`; must not lie inside an input.
    outtype : str, optional
        Type of merged tensors, such as ``"Q8_0"`` or ``"float16"``; default: the base's own.
    rounding : {"nearest", "amplified"}
        How quantised types are written: as llama.cpp's own quantiser does, or with the change of
        each block amplified until as much of it is there as should be
        (:func:`nola_edge.gguf.blocks.quantized_amplified`).
    force : bool
        Replace an existing output.
    num_threads : int, optional
        Default: the processors this process may use. The bytes do not depend on it.
    expect : str, optional
        SHA-256 of the result; any other is refused.
    check_result : bool
        Refuse another result than a packed adapter records for this base; see
        :func:`nola_edge.merge_checkpoint`.
    progress : callable, optional
        Called, from any thread, with the number of bytes written since the last call.

    Returns
    -------
    GgufReport

    Raises
    ------
    NolaEdgeError
        If an input is not what it claims, adapter and base do not fit, a type cannot be written, a
        merged weight is not finite, or the output cannot be written or is not the expected one;
        nothing is left.
    """
    check_threads(num_threads)
    sha256 = expected_hash(expect)
    base, output = arguments.path("base", base), arguments.path("output", output)
    begin = time.perf_counter()
    adapters = load_adapters(adapter)
    with GgufFile.open(base) as file:
        plan = plan_gguf(file, adapters, outtype=outtype, rounding=rounding)
        layout = Layout(file, plan.kinds)
        wanted = expectation(
            adapters,
            GGUF,
            lambda: base_fingerprint_of(plan),
            sha256=sha256,
            plainly=outtype is None and rounding == NEAREST,
            check_result=check_result,
        )
        inputs = [file.path, *(Path(a.path) for a, _ in adapters if a.path is not None)]
        with AtomicOutput(
            output,
            inputs=inputs,
            force=force,
            directory=False,
            expected_bytes=layout.size,
            replaces=_obstacle(file),
        ) as out:
            with out.file() as path, new_file(path, layout.size) as sink:
                survival = write_parts(
                    plan, layout, sink, num_threads, progress or (lambda _: None)
                )
            file.check_unchanged()
            expected_of = wanted.check(out.path, out.target, num_threads)
        return GgufReport(
            output=output,
            tensors=len(file.tensors),
            merged=len(plan.merges),
            nbytes=layout.size,
            seconds=time.perf_counter() - begin,
            types=tuple(sorted({merge.kind for merge in plan.merges.values()})),
            rounding=rounding,
            survival=survival,
            expected_of=expected_of,
            notes=wanted.notes,
        )


def _obstacle(base: GgufFile) -> Obstacle:
    """Make a test for a model in GGUF with the tensors of the base, of any type."""
    wanted = {name: str(list(info.shape)) for name, info in base.tensors.items()}

    def test(path: Path) -> str | None:
        in_the_way = gguf_model_obstacle(path)
        if in_the_way is not None:
            return in_the_way
        with GgufFile.open(path) as file:
            found = {name: str(list(info.shape)) for name, info in file.tensors.items()}
        return other_tensors(wanted, found)

    return test


def write_parts(
    plan: GgufPlan,
    layout: Layout,
    sink: Sink,
    num_threads: int | None,
    progress: Callable[[int], None],
) -> dict[str, Survival]:
    """Make what a merge writes; return what survives of the changes of quantised tensors."""
    writer = _Writer(plan.base, sink, progress)
    results = {name: plan.result(name) for name in plan.names if name in plan.merges}
    with Workers(num_threads) as workers:
        for offset, part in layout.parts():
            if isinstance(part, bytes):
                workers.submit(writer.write, part, offset)
            elif isinstance(part, str):
                for piece in _pieces(results[part], sink, num_threads):
                    workers.submit(writer.make, piece, offset, nbytes=piece.work)
            else:
                begin, end = part
                for start in range(begin, end, sink.copy_bytes):
                    stop = min(start + sink.copy_bytes, end)
                    workers.submit(writer.copy, start, stop, offset + start - begin)
    return {n: r.survival for n, r in results.items() if isinstance(r, Requantized) and r.survived}


def _pieces(result: Result, sink: Sink, num_threads: int | None) -> Iterator[Piece]:
    if not sink.in_order:
        return result.pieces(num_threads)
    from nola_edge.merge.in_order import pieces_in_order  # few results are hashed

    return pieces_in_order(result, num_threads)


class _Writer:
    """The output, made of ranges that are copied and of pieces. Usable from several threads."""

    def __init__(self, base: GgufFile, sink: Sink, progress: Callable[[int], None]) -> None:
        self._base = base
        self._sink = sink
        self._progress = progress
        self._buffers = Buffers()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        self._sink.write(data, offset)
        self._progress(len(data))

    def copy(self, begin: int, end: int, offset: int) -> None:
        """Copy bytes of the base."""
        self._sink.copy(self._base, begin, offset, end - begin)
        self._progress(end - begin)

    def make(self, piece: Piece, begin: int) -> None:
        """Make a piece of a tensor that begins at an offset, and write it."""
        data = piece.make(self._buffers.get(piece.nbytes))
        for offset, part in piece.runs.parts(data):
            self.write(part, begin + offset)
