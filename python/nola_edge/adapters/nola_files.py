"""The two files of a NOLA adapter, read with every tensor checked; its tensors, written."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.peft_folder import (
    CONFIG_NAME,
    PREFIX,
    holds_model,
    open_weights,
    prefixed_names,
)
from nola_edge.adapters.quantize import Quantized, dequantize, packed_size, quantize, scale_size
from nola_edge.adapters.whole_tensors import FROZEN_WEIGHT, load_whole, local_name, stored_name
from nola_edge.dtypes import MERGEABLE, SAVE_AS_MERGEABLE
from nola_edge.errors import AdapterError, NotFiniteError
from nola_edge.files.paths import cache_hint, read_inside, subfolders_hint, subfolders_with
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.strict_json import loads_object
from nola_edge.files.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

ALPHA = ".nola_alpha"
BETA = ".nola_beta"
SCALE = "_scale"


@dataclass(frozen=True, eq=False, repr=False)
class Coefficients:
    """The trained numbers of one module.

    Attributes
    ----------
    alpha : (k,) float32
        Coefficients of factor A, read-only.
    beta : (l,) float32
        Coefficients of factor B, read-only.
    """

    alpha: NDArray[np.float32]
    beta: NDArray[np.float32]

    def __repr__(self) -> str:
        return f"<Coefficients: alpha {self.alpha.size}, beta {self.beta.size}>"

    def __post_init__(self) -> None:
        """Freeze the arrays."""
        for name in ("alpha", "beta"):
            values = np.array(getattr(self, name), dtype=np.float32)
            values.flags.writeable = False
            object.__setattr__(self, name, values)


def load_config(folder: Path) -> AdapterConfig:
    """Read and check ``adapter_config.json``.

    Raises
    ------
    NolaEdgeError
        If it is missing, no strict JSON, or a field is wrong or not understood.
    """
    path = folder / CONFIG_NAME
    if not os.path.lexists(path):
        cached = cache_hint(folder)
        if cached:
            raise AdapterError(f"is {cached}", file=folder)
        if holds_model(folder):
            raise AdapterError("holds a model, not an adapter", file=folder)
        names = subfolders_with(folder, CONFIG_NAME.__eq__) if folder.is_dir() else []
        where = subfolders_hint(folder, names) if names else "; is this an adapter folder?"
        raise AdapterError(f"has no {CONFIG_NAME}{where}", file=folder)
    data = read_inside(folder, CONFIG_NAME)
    return AdapterConfig.from_json(loads_object(data, file=path), file=path)


def load_folder(
    folder: Path,
) -> tuple[AdapterConfig, dict[str, Coefficients], dict[str, Tensor]]:
    """Read an adapter folder.

    Raises
    ------
    NolaEdgeError
        If a file is missing or is not what it claims.
    """
    config = load_config(folder)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_weights(folder))
        modules, whole = load_tensors(file, config)
        file.check_unchanged()
        if whole:
            stack.pop_all()  # they stay in the file
    return config, modules, whole


def load_tensors(
    file: SafetensorsFile, config: AdapterConfig
) -> tuple[dict[str, Coefficients], dict[str, Tensor]]:
    """Sort a file's tensors into coefficient pairs and whole tensors.

    Raises
    ------
    NolaEdgeError
        If a name, dtype or shape is not what the configuration announces, or a value not finite.
    """
    pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
    whole: dict[str, Tensor] = {}
    counts = {ALPHA: config.num_basis_a, BETA: config.num_basis_b}
    for name in _named_tensors(file, config):
        local = name[len(PREFIX) :]
        module, dot, last = local.rpartition(".")
        if module and dot + last in counts:
            pair = pairs.setdefault(module, {})
            pair[dot + last] = _load_coefficients(file, name, counts[dot + last], config)
        else:
            local = local_name(local)
            if local in whole:
                raise AdapterError(f"is also present as {local}", file=file.path, field=name)
            whole[local] = load_whole(file, name, local, config)
    for module, pair in pairs.items():
        for suffix in (ALPHA, BETA):
            if suffix not in pair:
                raise AdapterError(
                    f"has no {suffix.removeprefix('.')}", file=file.path, field=module
                )
    modules = {m: Coefficients(pair[ALPHA], pair[BETA]) for m, pair in pairs.items()}
    return modules, whole


def _named_tensors(file: SafetensorsFile, config: AdapterConfig) -> Iterator[str]:
    """Yield the names of an adapter's tensors, scales apart, which go with their coefficients."""
    for name, _ in prefixed_names(file):
        if config.coefficient_bits is not None and name.endswith((ALPHA + SCALE, BETA + SCALE)):
            if name.removesuffix(SCALE) not in file.tensors:
                raise AdapterError("is a scale without coefficients", file=file.path, field=name)
            continue
        module = name.removesuffix(FROZEN_WEIGHT)
        if module != name and module + ALPHA in file.tensors:
            # The frozen weight of an adapted output layer, which PEFT saves along with
            # "embedding layers": it is the base's, not a change.
            continue
        yield name


def _load_coefficients(
    file: SafetensorsFile, name: str, count: int, config: AdapterConfig
) -> NDArray[np.float32]:
    if config.coefficient_bits is not None:
        exact_first = config.exact_first_alpha and name.endswith(ALPHA)
        return _load_quantized(file, name, count, config.coefficient_bits, exact_first)
    info = file.tensors[name]
    where: dict[str, Any] = {"file": file.path, "field": name}
    if info.dtype not in MERGEABLE:
        raise AdapterError(
            f"has dtype {info.dtype}, coefficients are {', '.join(MERGEABLE)}; {SAVE_AS_MERGEABLE}",
            **where,
        )
    if info.shape != (count,):
        raise AdapterError(
            f"has shape {list(info.shape)}, the configuration says [{count}]", **where
        )
    values = file.read(name).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NotFiniteError(
            f"coefficient {bad[0]} is {values[bad[0]]}; the training diverged", **where
        )
    return values


def _load_quantized(
    file: SafetensorsFile, name: str, count: int, bits: int, exact_first: bool
) -> NDArray[np.float32]:
    """Read packed coefficients and their scale."""
    info = file.tensors[name]
    where: dict[str, Any] = {"file": file.path, "field": name}
    size = packed_size(count, bits)
    if info.dtype != "U8" or info.shape != (size,):
        raise AdapterError(
            f"is {info.dtype} {list(info.shape)}; {count} coefficients of {bits} bits are "
            f"U8 [{size}]",
            **where,
        )
    scale_info, wanted = file.tensors.get(name + SCALE), scale_size(exact_first)
    if scale_info is None or scale_info.dtype != "F32" or scale_info.shape != (wanted,):
        raise AdapterError(f"must be F32 [{wanted}]", file=file.path, field=name + SCALE)
    try:
        return dequantize(Quantized(file.read(name), file.read(name + SCALE)), count, bits)
    except ValueError as error:
        raise AdapterError(str(error), **where) from None


def quantized_tensors(
    name: str, values: NDArray[np.float32], bits: int, exact_first: bool
) -> dict[str, NDArray[Any]]:
    """Return the two tensors that hold the coefficients of one factor in few bits."""
    quantized = quantize(values, bits, exact_first=exact_first)
    return {name: quantized.packed, name + SCALE: quantized.scale}


def named_tensors(
    config: AdapterConfig, modules: Mapping[str, Coefficients], whole: Mapping[str, Tensor]
) -> dict[str, NDArray[Any] | Tensor]:
    """Return the tensors of an adapter's file by their names there."""
    named: dict[str, NDArray[Any] | Tensor] = {}
    for module, coefficients in modules.items():
        for suffix, values in ((ALPHA, coefficients.alpha), (BETA, coefficients.beta)):
            name = PREFIX + module + suffix
            if config.coefficient_bits is None:
                named[name] = values
            else:
                exact_first = config.exact_first_alpha and suffix == ALPHA
                named.update(quantized_tensors(name, values, config.coefficient_bits, exact_first))
    for name, tensor in whole.items():
        named[PREFIX + stored_name(name, modules)] = tensor
    return named
