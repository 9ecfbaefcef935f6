"""An adapter's two files: read with every tensor checked, and written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.quantize import Quantized, check_scale, dequantize, packed_size, quantize
from nola_edge.dtypes import MERGEABLE, safetensors_dtype
from nola_edge.errors import AdapterError, NotFiniteError, OutputError, printable
from nola_edge.files.folder import weights_among
from nola_edge.files.paths import cache_hint, inside, read_inside, subfolders_hint, subfolders_with
from nola_edge.files.safetensors import METADATA, SafetensorsFile, encode_header
from nola_edge.files.strict_json import encode, loads_object
from nola_edge.files.tensors import StoredTensor, Tensor, tensor_of
from nola_edge.files.torch_file import torch_file_refused

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
ALPHA = ".nola_alpha"
BETA = ".nola_beta"
SCALE = "_scale"
_WRAPPED_BIAS = ".base_layer.bias"
_WRAPPED_WEIGHT = ".base_layer.weight"
INPUT_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
)
OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
#: What PEFT adds to ``modules_to_save`` for a classifier, whatever the model calls it.
HEADS = ("classifier", "score")
EMBEDDINGS = INPUT_EMBEDDINGS + OUTPUT_EMBEDDINGS


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


class Announcing(Protocol):
    """A configuration, of which two fields announce whole tensors."""

    @property
    def bias(self) -> str:
        """Return ``"none"``, or which biases are in the file."""

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors are in the file whole."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, tensors in the given order, block by block."""
    entries = [
        (name, safetensors_dtype(values.dtype), values.shape, values.nbytes)
        for name, values in tensors.items()
    ]
    with path.open("xb") as file:
        file.write(encode_header(entries, dict(metadata or {"format": "pt"})))
        for values in tensors.values():
            for block in tensor_of(values).blocks():
                file.write(block.view(np.uint8).data)


def write_config(path: Path, config: Mapping[str, Any], most: int | None = None) -> None:
    """Write a configuration as PEFT does: sorted, indented.

    Raises
    ------
    NolaEdgeError
        If a field cannot be written so that every reader understands it, or all take more than
        `most` bytes.
    """
    data = encode(config, file=path.name, indent=2, sort_keys=True) + b"\n"
    check_readable(len(data), most, CONFIG_NAME)
    with path.open("xb") as file:
        file.write(data)


def check_readable(nbytes: int, most: int | None, what: str) -> None:
    """Refuse to write what would be too large to be read again.

    Raises
    ------
    OutputError
    """
    if most is not None and nbytes > most:
        raise OutputError(
            f"would have {nbytes} bytes, more than the {most} that are read; name the targets by "
            "their last parts",
            file=what,
            field="target_modules",
        )


def holds_model(folder: Path) -> bool:
    """Tell whether a folder is a model's, which was given in the place of an adapter's."""
    if not folder.is_dir() or (folder / CONFIG_NAME).exists():
        return False
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return WEIGHTS_NAME not in names and (
        "config.json" in names or weights_among(names) is not None
    )


def load_config(folder: Path) -> AdapterConfig:
    """Read and check ``adapter_config.json``.

    Raises
    ------
    NolaEdgeError
        If it is missing, no strict JSON, or a field is wrong or not understood.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
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


def open_weights(folder: Path) -> SafetensorsFile:
    """Open ``adapter_model.safetensors``.

    Raises
    ------
    NolaEdgeError
        If it is missing, or its header breaks a rule of the format.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        if (folder / _PICKLED_NAME).exists():
            raise torch_file_refused(folder / _PICKLED_NAME, folder)
        raise AdapterError(f"has no {WEIGHTS_NAME}", file=folder)
    return SafetensorsFile.open(inside(folder, WEIGHTS_NAME))


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
                raise AdapterError(f"is there as {local} too", file=file.path, field=name)
            whole[local] = load_whole(file, name, local, config)
    for module, pair in pairs.items():
        for suffix in (ALPHA, BETA):
            if suffix not in pair:
                raise AdapterError(
                    f"has no {suffix.removeprefix('.')}", file=file.path, field=module
                )
    modules = {m: Coefficients(pair[ALPHA], pair[BETA]) for m, pair in pairs.items()}
    return modules, whole


def prefixed_names(file: SafetensorsFile, apart: Container[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the name of each tensor but some, as it is and without PEFT's prefix.

    Raises
    ------
    AdapterError
        If one has no such prefix, or cannot be printed.
    """
    for name in file.tensors:
        if name in apart:
            continue
        if not name.startswith(PREFIX) or not name.isprintable():
            raise AdapterError(
                f"does not begin with {PREFIX!r}, as PEFT's save_pretrained names it",
                file=file.path,
                field=name,
            )
        yield name, name[len(PREFIX) :]


def _named_tensors(file: SafetensorsFile, config: AdapterConfig) -> Iterator[str]:
    """Yield the names of an adapter's tensors, scales apart, which go with their coefficients."""
    for name, _ in prefixed_names(file):
        if config.coefficient_bits is not None and name.endswith((ALPHA + SCALE, BETA + SCALE)):
            if name.removesuffix(SCALE) not in file.tensors:
                raise AdapterError("is a scale without coefficients", file=file.path, field=name)
            continue
        module = name.removesuffix(_WRAPPED_WEIGHT)
        if module != name and module + ALPHA in file.tensors:
            # The frozen weight of an adapted output layer, which PEFT saves along with
            # "embedding layers": it is the base's, not a change.
            continue
        yield name


def _load_coefficients(
    file: SafetensorsFile, name: str, count: int, config: AdapterConfig
) -> NDArray[np.float32]:
    if config.coefficient_bits is not None:
        return _load_quantized(file, name, count, config.coefficient_bits)
    info = file.tensors[name]
    where: dict[str, Any] = {"file": file.path, "field": name}
    if info.dtype not in MERGEABLE:
        raise AdapterError(
            f"has dtype {info.dtype}, coefficients are {', '.join(MERGEABLE)}", **where
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


def _load_quantized(file: SafetensorsFile, name: str, count: int, bits: int) -> NDArray[np.float32]:
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
    scale_info = file.tensors.get(name + SCALE)
    if scale_info is None or scale_info.dtype != "F32" or scale_info.shape != (1,):
        raise AdapterError("must be F32 [1]", file=file.path, field=name + SCALE)
    scale = file.read(name + SCALE)[0]
    try:
        return dequantize(Quantized(file.read(name), check_scale(scale)), count, bits)
    except ValueError as error:
        raise AdapterError(str(error), **where) from None


def quantized_tensors(name: str, values: NDArray[np.float32], bits: int) -> dict[str, NDArray[Any]]:
    """Return the two tensors that hold the coefficients of one factor in few bits."""
    quantized = quantize(values, bits)
    return {name: quantized.packed, name + SCALE: np.array([quantized.scale], np.float32)}


def stored_name(local: str, modules: Container[str]) -> str:
    """Return the name that PEFT gives a whole tensor: the bias of an adapted layer is wrapped."""
    module = local.removesuffix(".bias")
    return module + _WRAPPED_BIAS if module != local and module in modules else local


def local_name(stored: str) -> str:
    """Return the name in the model: PEFT names the bias of an adapted layer by what it wrapped."""
    if not stored.endswith(_WRAPPED_BIAS):
        return stored
    return stored.removesuffix(_WRAPPED_BIAS) + ".bias"


def is_saved(local: str, modules: Iterable[str]) -> bool:
    """Tell whether a tensor belongs to one of the modules that are saved whole."""
    return any(f".{module}." in f".{local}" or local == module for module in modules)


def check_saved_modules(whole: Iterable[str], config: Announcing, file: Path) -> None:
    """Refuse an adapter that lacks a module that ``modules_to_save`` announces.

    PEFT announces every name that it knows for a classifier's head; a model has one of them.

    Raises
    ------
    AdapterError
    """
    names, announced = list(whole), config.modules_to_save
    missing = [m for m in announced if not any(is_saved(name, [m]) for name in names)]
    if not set(HEADS) & set(announced) <= set(missing):  # there is a head
        missing = [module for module in missing if module not in HEADS]
    if missing:
        raise AdapterError(
            f"announces {printable(missing[0])!r}, and the adapter holds no tensor of it; save the "
            "adapter again, or remove the name if the model has no such module",
            file=file,
            field="modules_to_save",
            value=missing[0],
        )


def load_whole(
    file: SafetensorsFile, name: str, local: str, config: Announcing, *, own: str = "coefficients"
) -> Tensor:
    """Check the tensor `name`, called `local` in the model, if the configuration announces it.

    It stays in the file, which must stay open. What the adapter's `own` tensors are called is for
    the message.
    """
    bias = config.bias != "none" and local.endswith(".bias")
    where: dict[str, Any] = {"file": file.path, "field": name}
    if local == METADATA or not (is_saved(local, config.modules_to_save) or bias):
        advice = ""
        if local.endswith(EMBEDDINGS):
            advice = (
                "; PEFT saved an embedding along: save with save_embedding_layers=False, or name "
                "it in modules_to_save if it was trained or resized"
            )
        raise AdapterError(
            f"is neither {own} nor a tensor that modules_to_save or bias announce{advice}",
            **where,
        )
    info = file.tensors[name]
    if info.dtype not in MERGEABLE:
        raise AdapterError(f"has dtype {info.dtype}, must be {', '.join(MERGEABLE)}", **where)
    tensor = StoredTensor(file, name)
    if not tensor.is_finite():
        raise NotFiniteError("holds an infinite or NaN value", **where)
    return tensor
