"""Export adapters as one exact LoRA for llama.cpp (``--lora``) and Ollama (``ADAPTER``).

A and B are the expanded factors; rows of B are in the order of the base's tensor. llama.cpp scales
every product by alpha / r, with one alpha for the file and the r of each tensor
(``llama-adapter.h``), and takes an alpha of 0 for a factor of 1.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments, ops
from nola_edge.adapters.belongs import check_no_magnitudes
from nola_edge.errors import ArgumentError, CheckpointError, NotFiniteError
from nola_edge.export.alpha import alpha_of
from nola_edge.export.factors import factor_tensor
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.gguf import GgufFile, gguf_lora_obstacle
from nola_edge.files.hub import base_path
from nola_edge.files.paths import read_inside
from nola_edge.files.signature import is_gguf
from nola_edge.files.strict_json import loads_object
from nola_edge.files.tensors import ComputedTensor, StackedTensor
from nola_edge.gguf.model import model_of_config, model_of_gguf
from nola_edge.gguf.plan import check_no_double, check_no_whole_tensors, matched_tensors, target_of
from nola_edge.gguf.row_order import interleaved_rows
from nola_edge.merge.low_rank import stored_features
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.tensors import Tensor
    from nola_edge.gguf.architectures import Model, Target

    Adapters = tuple[tuple[LowRankAdapter, float], ...]

_DTYPES = {"F32": np.float32, "F16": np.float16}
_CONFIG = "config.json"


@dataclass(frozen=True)
class _Share:
    """What one adapter brings to one tensor of (out_features, in_features)."""

    adapter: LowRankAdapter
    module: str
    features: tuple[int, int]
    head_rows: int | None
    weight: float

    @property
    def is_embedding(self) -> bool:
        return self.adapter.is_embedding(self.module)

    @property
    def rank(self) -> int:
        return self.adapter.rank(self.module)

    @property
    def scaling(self) -> float:
        return self.weight * self.adapter.scaling_of(self.module)

    def b(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of B, in the order of the base's tensor."""

        def rows(first: int, last: int) -> NDArray[np.float32]:
            return self.adapter.factor_b(self.module, self.features[0], (first, last))

        if self.head_rows is None:
            return rows(start, stop)
        return interleaved_rows(rows, self.head_rows, start, stop)


def export_gguf_lora(
    adapter: Any,
    base: str | Path,
    output: str | Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    check_base: bool = True,
) -> Path:
    """Write a LoRA file that llama.cpp and Ollama load beside a model.

    Parameters
    ----------
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        Several become one LoRA, whose rank is the sum of theirs.
    base : path or str
        The GGUF file that it will be loaded with, of any quantisation, or the Hugging Face folder,
        or Hub id, that it was converted from; says what the tensors are called and how large they
        are.
    output : path
    dtype : {"F32", "F16"}
        Of A and B, in any case or by torch's name; F16 rounds them.
    force : bool
        Replace an existing output.
    check_base : bool
        Refuse a Hugging Face base with another fingerprint than an adapter records.

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
        check_no_magnitudes(loaded, "llama.cpp does not, so merge into a GGUF file instead")
    base = base_path(base)
    model, shares = (
        _from_gguf(base, adapters) if is_gguf(base) else _from_folder(base, adapters, check_base)
    )
    alpha, tensors = _with_one_alpha(shares)
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


def _from_gguf(base: Path, adapters: Adapters) -> tuple[Model, dict[str, list[_Share]]]:
    with GgufFile.open(base) as file:
        model = model_of_gguf(file)
        shares: dict[str, list[_Share]] = {}
        for adapter, weight in adapters:
            for module, target in matched_tensors(file, model, adapter).items():
                shape = file.tensors[target.tensor].shape
                features = stored_features(shape, adapter.is_embedding(module))
                share = _share(adapter, module, target, features, weight, base)
                shares.setdefault(target.tensor, []).append(share)
        file.check_unchanged()
    return model, shares


def _from_folder(
    base: Path, adapters: Adapters, check_base: bool
) -> tuple[Model, dict[str, list[_Share]]]:
    with Checkpoint.open(base) as checkpoint:
        plan = plan_merge(checkpoint, adapters, check_base=check_base)
        if not checkpoint.is_folder:
            raise CheckpointError(
                f"is not a folder with a {_CONFIG}, which says what the model's tensors are called "
                "in GGUF; give the folder, or the GGUF file itself",
                file=base,
            )
        data = read_inside(base, _CONFIG)
        model = model_of_config(loads_object(data, file=base / _CONFIG), base / _CONFIG)
        for adapter, _ in adapters:
            targets = {m: target_of(model, adapter, m) for m in adapter.modules}
            check_no_double(adapter, targets)
        shares: dict[str, list[_Share]] = {}
        for name, terms in plan.merges.items():
            shape = plan.tensor(name)[1].shape
            for term in terms:
                target = target_of(model, term.adapter, term.module)
                features = stored_features(shape, term.transposed)
                share = _share(term.adapter, term.module, target, features, term.weight, base)
                shares.setdefault(target.tensor, []).append(share)
        checkpoint.check_unchanged()
    return model, shares


def _share(
    adapter: LowRankAdapter,
    module: str,
    target: Target,
    features: tuple[int, int],
    weight: float,
    base: Path,
) -> _Share:
    return _Share(adapter, module, features, target.head_rows(features[0], base), weight)


def _with_one_alpha(
    shares: dict[str, list[_Share]],
) -> tuple[float, dict[str, Tensor]]:
    """Join the adapters of each tensor, and bake into B what one alpha cannot say.

    One adapter has one scaling s and one rank r: alpha = s r, and B stays exact. Several have
    ranks R that add up differently from tensor to tensor: alpha is the largest, and each B is
    multiplied by s R / alpha.
    """
    scalings = {share.scaling for parts in shares.values() for share in parts}
    ranks = {name: sum(share.rank for share in parts) for name, parts in shares.items()}
    largest = max(ranks.values())
    single = len(set(ranks.values())) == len(scalings) == 1 and all(
        len(parts) == 1 for parts in shares.values()
    )
    scaling = next(iter(scalings)) if single else 0.0
    # Within float32's normal numbers: what is smaller loses digits, and at last is a factor of 1.
    limits = np.finfo(np.float32)
    exact = float(limits.tiny) <= abs(scaling) and abs(scaling) * largest <= float(limits.max)
    alpha = alpha_of(scaling, largest, np.float32) if exact else float(largest)
    tensors: dict[str, Tensor] = {}
    for name, parts in shares.items():
        factor = None if exact else ranks[name] / largest
        tensors[f"{name}.lora_a"] = _joined_a(parts, ranks[name])
        tensors[f"{name}.lora_b"] = _joined_b(parts, ranks[name], factor)
    return alpha, tensors


def _joined_a(parts: Sequence[_Share], rank: int) -> Tensor:
    """Return A of all adapters, one below the other; of an embedding transposed.

    llama.cpp looks tokens up in the rows of that.
    """
    cols = parts[0].features[1]
    kind = np.dtype(np.float32)
    if parts[0].is_embedding:
        return ComputedTensor(kind, (cols, rank), lambda rows, cols: _embedded(parts, rows, cols))
    return StackedTensor(
        [factor_tensor(share.adapter, share.module, "A", cols, kind) for share in parts],
        (rank, cols),
    )


def _embedded(
    parts: Sequence[_Share], tokens: tuple[int, int], cols: tuple[int, int]
) -> NDArray[np.float32]:
    found = [share.adapter.factor_a(share.module, share.features[1], tokens) for share in parts]
    return np.concatenate(found).T[:, slice(*cols)]


def _joined_b(parts: Sequence[_Share], rank: int, factor: float | None) -> Tensor:
    """Return B of all adapters, side by side, each with its scaling times the factor if any."""

    def compute(rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.float32]:
        found = [share.b(*rows) for share in parts]
        if factor is not None:
            found = [
                ops.scaled(b, share.scaling * factor) for b, share in zip(found, parts, strict=True)
            ]
        return np.concatenate(found, axis=1)[:, cols[0] : cols[1]]

    return ComputedTensor(np.dtype(np.float32), (parts[0].features[0], rank), compute)


def _rounded(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below, and better
        rounded: NDArray[Any] = np.ascontiguousarray(values.astype(_DTYPES[dtype]))
    if not np.isfinite(rounded).all():
        raise NotFiniteError(f"is not finite in {dtype}", field=name)
    return rounded
