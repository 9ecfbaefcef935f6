"""One file for shipping: an adapter whose names do not outweigh its numbers.

A safetensors file needs some sixty bytes of header for each tensor, more than the coefficients of
a module in four bits. Packed, all coefficients are one tensor, and configuration and names are
compressed JSON. The container is still safetensors, read by the same strict reader
(docs/adapter-format.md, *Packed*).
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nola_edge.adapters.expected import FIELD, read_expected, to_json
from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.nola_files import Coefficients
from nola_edge.adapters.peft_folder import check_readable, write_tensors
from nola_edge.adapters.quantize import Quantized, dequantize, packed_size, quantize, scale_size
from nola_edge.adapters.whole_tensors import load_whole
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import AdapterError, FormatError, OutputError, printable
from nola_edge.files.json_cursor import Cursor
from nola_edge.files.safetensors import SafetensorsFile, stated_format
from nola_edge.files.signature import BEGIN, refuse_lfs_pointer
from nola_edge.files.strict_json import MAX_CONFIG_BYTES, dumps, encode
from nola_edge.files.tensors import ArrayTensor, StoredTensor
from nola_edge.files.torch_file import begins_as_torch
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.expected import ExpectedResult
    from nola_edge.files.tensors import Tensor

#: The format that is written. The first, without a hash of the contents, is read too.
FORMAT = "nola-packed-2"
FORMAT_1 = "nola-packed-1"

_HASH = "sha256"
_ABOUT = "about"
_COEFFICIENTS = "coefficients"
_SCALES = "scales"
_WHOLE = "whole."
_MAX_ABOUT_BYTES = 4_000_000
#: As many as the linear layers of every expert of the largest models.
_MAX_MODULES = 100_000
_MAX_NAME = 8192


class Contents(NamedTuple):
    """What a packed adapter holds.

    Attributes
    ----------
    config : AdapterConfig
    modules : dict
        Module name -> coefficients.
    whole : dict
        Tensor name -> whole tensor.
    expected : tuple of ExpectedResult
        What merging it must give, for each base that its publisher named.
    """

    config: AdapterConfig
    modules: dict[str, Coefficients]
    whole: dict[str, Tensor]
    expected: tuple[ExpectedResult, ...] = ()


def write_packed(
    path: Path,
    config: AdapterConfig,
    modules: Mapping[str, Coefficients],
    whole: Mapping[str, Tensor],
    expected: Sequence[ExpectedResult] = (),
) -> None:
    """Write a packed adapter to a new file; the arguments are those of :class:`Contents`.

    Raises
    ------
    NolaEdgeError
        If the configuration cannot be written so that every reader understands it, or there are
        more modules, or a larger configuration, than are read again.
    """
    about: dict[str, Any] = {"config": config.to_json(), "modules": list(modules)}
    if expected:
        about[FIELD] = to_json(expected, path.name)
    text = encode(about, separators=(",", ":"), sort_keys=True)
    check_readable(len(dumps(about["config"])), MAX_CONFIG_BYTES, "config")
    check_readable(len(text), _MAX_ABOUT_BYTES, _ABOUT)
    if len(modules) > _MAX_MODULES:
        raise OutputError(
            f"{len(modules)} modules exceed the limit of {_MAX_MODULES}; use a folder",
            file=path.name,
        )
    factors = [values for c in modules.values() for values in (c.alpha, c.beta)]
    tensors: dict[str, Tensor] = {}
    bits, exact = config.coefficient_bits, (config.exact_first_alpha, False) * len(modules)
    if bits is None:
        tensors[_COEFFICIENTS] = ArrayTensor(np.concatenate(factors))
    else:
        quantized = [
            quantize(values, bits, exact_first=first)
            for values, first in zip(factors, exact, strict=True)
        ]
        tensors[_SCALES] = ArrayTensor(np.concatenate([q.scale for q in quantized]))
        tensors[_COEFFICIENTS] = ArrayTensor(np.concatenate([q.packed for q in quantized]))
    tensors[_ABOUT] = ArrayTensor(np.frombuffer(zlib.compress(text, 9), np.uint8))
    for name, values in whole.items():
        tensors[_WHOLE + name] = values
    write_tensors(path, tensors, {"format": FORMAT, _HASH: contents_hash(tensors)})


def contents_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what a packed adapter holds (docs/adapter-format.md, *Packed*)."""
    import hashlib  # here: folders are read without it

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        shape = "x".join(map(str, tensor.shape))
        digest.update(f"{name} {safetensors_dtype(tensor.dtype)} {shape}\n".encode())
        for block in tensor.blocks():
            check_stopped()
            digest.update(block.view(np.uint8).data)
    return digest.hexdigest()


def load_packed(path: Path) -> Contents:
    """Read a packed adapter.

    Raises
    ------
    NolaEdgeError
        If the file is not what it claims. Nothing is allocated before its size is checked.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        metadata = file.metadata or {}
        if metadata.get("format") not in (FORMAT, FORMAT_1) or _ABOUT not in file.tensors:
            raise AdapterError(
                "is not a packed adapter; give one that nola-edge pack made, or the folder that "
                "holds adapter_config.json",
                file=path,
            )
        whole_names = list(_whole_names(file))
        if metadata["format"] == FORMAT:
            _check_contents(file, metadata.get(_HASH))
        config, names, expected = _parse_about(_inflate(file), path)
        modules = _coefficients(file, config, names)
        whole = {
            name.removeprefix(_WHOLE): load_whole(file, name, name.removeprefix(_WHOLE), config)
            for name in whole_names
        }
        file.check_unchanged()
        if whole:
            stack.pop_all()  # they stay in the file
    return Contents(config, modules, whole, expected)


def _opened(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile.open(path)
    except FormatError:
        if path.is_file():
            _refuse_no_adapter(path)
        raise


def _refuse_no_adapter(path: Path) -> None:
    """Refuse what does not even begin as a safetensors file, by what is wanted here."""
    with path.open("rb") as file:
        begin = file.read(BEGIN)
    refuse_lfs_pointer(begin, path)
    if begin.startswith(b"GGUF"):
        raise FormatError("is a GGUF file, not an adapter", file=path)
    if begin[8:9] != b"{" and not begins_as_torch(begin[:9]):
        raise FormatError("is not an adapter: give its folder or a packed .nola file", file=path)


def _check_contents(file: SafetensorsFile, stated: str | None) -> None:
    """Refuse an adapter with a bit that is not as it was packed."""
    found = contents_hash({name: StoredTensor(file, name) for name in file.tensors})
    if stated != found:
        raise AdapterError(
            f"is {printable(str(stated), 80)}, but the contents have {found}: the file was damaged "
            "or edited; get it again",
            file=file.path,
            field=_HASH,
        )


def _whole_names(file: SafetensorsFile) -> Iterator[str]:
    for name in file.tensors:
        if name in (_ABOUT, _COEFFICIENTS, _SCALES):
            continue
        if not name.startswith(_WHOLE) or not name.isprintable():
            raise AdapterError(f"does not begin with {_WHOLE!r}", file=file.path, field=name)
        yield name


def _inflate(file: SafetensorsFile) -> bytes:
    """Decompress the JSON, and no more than a configuration can be."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(file.read(_ABOUT).tobytes(), _MAX_ABOUT_BYTES)
    except zlib.error:
        text = b""
    if not inflater.eof or inflater.unused_data:
        raise AdapterError("is not compressed JSON", file=file.path, field=_ABOUT)
    return text


def _parse_about(
    data: bytes, path: Path
) -> tuple[AdapterConfig, list[str], tuple[ExpectedResult, ...]]:
    """Return the configuration, the modules' names and the results that are expected."""
    cursor = Cursor(data, file=path)
    config: Any = None
    names: list[str] = []
    expected: tuple[ExpectedResult, ...] = ()
    for key in cursor.keys(3):
        if key == "config":
            config = cursor.value(MAX_CONFIG_BYTES)
        elif key == "modules":
            names = _module_names(cursor, path)
        elif key == FIELD:
            expected = read_expected(cursor, path)
        else:
            raise AdapterError("is not understood", file=path, field=key)
    cursor.end()
    if not isinstance(config, dict):
        raise AdapterError("is missing", file=path, field="config")
    if not names:
        raise AdapterError("is missing", file=path, field="modules")
    return AdapterConfig.from_json(config, file=path), names, expected


def _module_names(cursor: Cursor, path: Path) -> list[str]:
    def refuse(found: object) -> AdapterError:
        return AdapterError(
            f"is {printable(str(found))}, not a list of distinct printable names",
            file=path,
            field="modules",
        )

    if cursor.peek() != "[":
        raise refuse(cursor.value(_MAX_NAME))
    names: dict[str, None] = {}
    for name in cursor.items(_MAX_MODULES, _MAX_NAME):
        if not isinstance(name, str) or not name.isprintable() or name in names:
            raise refuse([name])
        names[name] = None
    if not names:
        raise refuse([])
    return list(names)


def _coefficients(
    file: SafetensorsFile, config: AdapterConfig, names: list[str]
) -> dict[str, Coefficients]:
    counts = (config.num_basis_a, config.num_basis_b)
    bits = config.coefficient_bits
    if bits is None:
        alphas, betas = _parts(file, _COEFFICIENTS, "F32", len(names), counts)
        return {n: Coefficients(a, b) for n, a, b in zip(names, alphas, betas, strict=True)}
    sizes = [packed_size(count, bits) for count in counts]
    packed = _parts(file, _COEFFICIENTS, "U8", len(names), sizes)
    scales = _parts(file, _SCALES, "F32", len(names), [scale_size(config.exact_first_alpha), 1])
    modules: dict[str, Coefficients] = {}
    for i, name in enumerate(names):
        try:
            alpha, beta = (
                dequantize(Quantized(packed[f][i], scales[f][i]), counts[f], bits) for f in (0, 1)
            )
        except ValueError as error:
            raise AdapterError(str(error), file=file.path, field=name) from None
        modules[name] = Coefficients(alpha, beta)
    return modules


def _parts(
    file: SafetensorsFile, name: str, dtype: str, modules: int, sizes: Sequence[int]
) -> list[NDArray[Any]]:
    """Return what a tensor holds for alpha and for beta, each (modules, size)."""
    flat = _tensor(file, name, dtype, modules * sum(sizes))
    return np.split(flat.reshape(modules, sum(sizes)), sizes[:1], axis=1)


def _tensor(file: SafetensorsFile, name: str, dtype: str, count: int) -> NDArray[Any]:
    info = file.tensors.get(name)
    if info is None or info.dtype != dtype or info.shape != (count,):
        found = "is missing" if info is None else f"is {info.dtype} {list(info.shape)}"
        raise AdapterError(
            f"{found}; configuration and names ask for {dtype} [{count}]",
            file=file.path,
            field=name,
        )
    return file.read(name)


def packed_obstacle(path: Path) -> str | None:
    """Say what keeps a path from being replaced by a packed adapter: it is not one itself."""
    packed = (stated_format(path) or "").startswith("nola-packed-")
    return None if packed else "is not a packed adapter"
