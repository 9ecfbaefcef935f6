"""Export adapters as one exact LoRA for llama.cpp (``--lora``) and Ollama (``ADAPTER``).

A and B are the expanded factors; rows of B are in the order of the base's tensor. llama.cpp scales
every product by alpha / r, with one alpha for the file and the r of each tensor
(``llama-adapter.h``), and takes an alpha of 0 for a factor of 1.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments, ops
from nola_edge.adapters.belongs import check_no_magnitudes, check_no_stacks
from nola_edge.adapters.renames import Renames
from nola_edge.errors import ArgumentError, CheckpointError, NotFiniteError
from nola_edge.export.alpha import alpha_of
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.gguf import GgufFile, gguf_lora_obstacle
from nola_edge.files.hub import base_path
from nola_edge.files.paths import read_inside
from nola_edge.files.signature import is_gguf
from nola_edge.files.strict_json import loads_object
from nola_edge.files.tensors import ComputedTensor, StackedTensor
from nola_edge.gguf.model import model_of_config, model_of_gguf
from nola_edge.gguf.plan import check_no_double, check_no_whole_tensors, matched_tensors, place_of
from nola_edge.merge.low_rank import Term, total_rank
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.merge.target import Target
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.tensors import Tensor
    from nola_edge.gguf.architectures import Model

    Adapters = tuple[tuple[LowRankAdapter, float], ...]

_DTYPES = {"F32": np.float32, "F16": np.float16}
_CONFIG = "config.json"


def export_gguf_lora(
    adapter: Any,
    base: str | Path,
    output: str | Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
) -> Path:
    """Write a LoRA file that llama.cpp and Ollama load beside a model.

    Parameters
    ----------
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Several become one LoRA, whose rank is the sum of theirs.
    base : path or str
        The GGUF file that it will be loaded with, of any quantisation, or the Hugging Face folder
        or Hub id that this was converted from; it gives the names and sizes of the tensors.
    output : path
    dtype : {"F32", "F16"}
        Type of A and B, in upper or lower case or by torch's name; F16 rounds them.
    force : bool
        Replace an existing output.
    check_base : bool
        Refuse a Hugging Face base with another fingerprint than an adapter records.
    rename
        Other names in a Hugging Face base; see :func:`nola_edge.merge_checkpoint`.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    NolaEdgeError
        If an input is not what it claims, adapter and base do not fit, a number is not finite, or
        the output cannot be written; nothing is left.
    """
    dtype = check_type(dtype, _DTYPES)
    output = arguments.path("output", output)
    arguments.path("base", base)
    gguf = _gguf()
    adapters = load_adapters(adapter)
    for loaded, _ in adapters:
        check_no_whole_tensors(loaded)
        check_no_stacks(loaded, "merge it into the checkpoint, and convert that")
        check_no_magnitudes(loaded, "llama.cpp does not, so merge into a GGUF file instead")
    base = base_path(base)
    model, terms = (
        _from_gguf(base, adapters)
        if is_gguf(base)
        else _from_folder(base, adapters, check_base, Renames(rename))
    )
    alpha, tensors = _with_one_alpha(terms)
    inputs = [base, *(Path(a.path) for a, _ in adapters if a.path is not None)]
    with (
        AtomicOutput(
            output, inputs=inputs, force=force, directory=False, replaces=gguf_lora_obstacle
        ) as out,
        out.file() as path,
        contextlib.closing(gguf.GGUFWriter(path, model.architecture.name)) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        _write_tensors(writer, tensors, dtype)
    return output


def _write_tensors(writer: Any, tensors: dict[str, Tensor], dtype: str) -> None:
    """Write the file, tensors block by block; the writer's own way holds them all in memory."""
    kind = np.dtype(_DTYPES[dtype])
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tensor.shape, kind, tensor.size * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for name, tensor in tensors.items():
        for block in tensor.blocks():
            file.write(_rounded(block, dtype, name).data)
        writer.write_padding(file, tensor.size * kind.itemsize)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ArgumentError("writing GGUF files needs the gguf package: pip install gguf") from None
    return gguf


def _from_gguf(base: Path, adapters: Adapters) -> tuple[Model, dict[str, list[Term]]]:
    with GgufFile.open(base) as file:
        model = model_of_gguf(file)
        terms: dict[str, list[Term]] = {}
        for adapter, weight in adapters:
            for module, target in matched_tensors(file, model, adapter).items():
                term = Term(adapter, module, weight, target)
                terms.setdefault(target.tensor, []).append(term)
        file.check_unchanged()
    return model, terms


def _from_folder(
    base: Path, adapters: Adapters, check_base: bool, renames: Renames
) -> tuple[Model, dict[str, list[Term]]]:
    with Checkpoint.open(base) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base, renames=renames)
        renames.check_used()
        if not checkpoint.is_folder:
            raise CheckpointError(
                f"is not a folder with a {_CONFIG}, which says what the model's tensors are called "
                "in GGUF; give the folder, or the GGUF file itself",
                file=base,
            )
        data = read_inside(base, _CONFIG)
        model = model_of_config(loads_object(data, file=base / _CONFIG), base / _CONFIG)
        for adapter, _ in adapters:
            tensors = {m: place_of(model, adapter, m).tensor for m in adapter.modules}
            check_no_double(adapter, tensors)
        terms: dict[str, list[Term]] = {}
        for found in plan.merges.values():
            for term in found:
                renamed = _in_gguf(model, term, base)
                terms.setdefault(renamed.target.tensor, []).append(renamed)
        checkpoint.check_unchanged()
    return model, terms


def _in_gguf(model: Model, term: Term, base: Path) -> Term:
    """Return a term of a folder's tensor for the tensor that GGUF would have."""
    place = place_of(model, term.adapter, term.module)
    is_embedding = term.adapter.is_embedding(term.module)
    head_rows = place.head_rows(term.target.out_features, base)
    shape = term.target.features[::-1] if is_embedding else term.target.features
    return replace(term, target=Target.whole(place.tensor, shape, is_embedding, head_rows))


def _with_one_alpha(
    terms: dict[str, list[Term]],
) -> tuple[float, dict[str, Tensor]]:
    """Join the adapters of each tensor, and bake into B what one alpha cannot say.

    One adapter has one scaling s and one rank r: alpha = s r, and B stays exact. Several have
    ranks R that add up differently from tensor to tensor: alpha is the largest, and each B is
    multiplied by s R / alpha.
    """
    scalings = {term.scaling for parts in terms.values() for term in parts}
    ranks = {name: total_rank(parts) for name, parts in terms.items()}
    largest = max(ranks.values())
    single = len(set(ranks.values())) == len(scalings) == 1 and all(
        len(parts) == 1 for parts in terms.values()
    )
    scaling = next(iter(scalings)) if single else 0.0
    # Within float32's normal numbers: what is smaller loses digits, and at last is a factor of 1.
    limits = np.finfo(np.float32)
    exact = float(limits.tiny) <= abs(scaling) and abs(scaling) * largest <= float(limits.max)
    alpha = alpha_of(scaling, largest, np.float32) if exact else float(largest)
    tensors: dict[str, Tensor] = {}
    for name, parts in terms.items():
        factor = None if exact else ranks[name] / largest
        tensors[f"{name}.lora_a"] = _joined_a(parts, ranks[name])
        tensors[f"{name}.lora_b"] = _joined_b(parts, ranks[name], factor)
    return alpha, tensors


def _joined_a(parts: Sequence[Term], rank: int) -> Tensor:
    """Return A of all adapters, one below the other; of an embedding transposed.

    llama.cpp looks tokens up in the rows of that.
    """
    cols = parts[0].target.in_features
    kind = np.dtype(np.float32)
    if parts[0].target.transposed:
        return ComputedTensor(kind, (cols, rank), lambda rows, cols: _embedded(parts, rows, cols))
    return StackedTensor([_a_of(term, cols) for term in parts], (rank, cols))


def _a_of(term: Term, in_features: int) -> Tensor:
    def compute(rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.float32]:
        return term.adapter.factor_a(term.module, in_features, cols, rows=rows)

    return ComputedTensor(np.dtype(np.float32), (term.rank, in_features), compute)


def _embedded(
    parts: Sequence[Term], tokens: tuple[int, int], cols: tuple[int, int]
) -> NDArray[np.float32]:
    return np.concatenate([term.a(tokens) for term in parts]).T[:, slice(*cols)]


def _joined_b(parts: Sequence[Term], rank: int, factor: float | None) -> Tensor:
    """Return B of all adapters, side by side, each with its scaling times the factor if any."""

    def compute(rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.float32]:
        found = [term.b(rows) for term in parts]
        if factor is not None:
            found = [
                ops.scaled(b, term.scaling * factor) for b, term in zip(found, parts, strict=True)
            ]
        return np.concatenate(found, axis=1)[:, cols[0] : cols[1]]

    return ComputedTensor(np.dtype(np.float32), (parts[0].target.out_features, rank), compute)


def _rounded(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below, and better
        rounded: NDArray[Any] = np.ascontiguousarray(values.astype(_DTYPES[dtype]))
    if not np.isfinite(rounded).all():
        kind = dtype if np.isfinite(values).all() else "F32"  # where another type would not help
        raise NotFiniteError(f"is not finite in {kind}", field=name)
    return rounded
