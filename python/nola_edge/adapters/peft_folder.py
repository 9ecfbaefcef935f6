"""The two files of a PEFT folder, whatever the method: their names, written, opened."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import AdapterError, NolaEdgeError, OutputError
from nola_edge.files.folder import weights_among
from nola_edge.files.obstacles import foreign, names_below
from nola_edge.files.paths import inside, read_inside
from nola_edge.files.safetensors import SafetensorsFile, encode_header
from nola_edge.files.strict_json import encode, loads_object
from nola_edge.files.tensors import tensor_of
from nola_edge.files.torch_file import torch_file_refused

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.files.obstacles import Obstacle
    from nola_edge.files.tensors import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
_OWN_FILES = {CONFIG_NAME, WEIGHTS_NAME, "head.safetensors"}


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
            f"would have {nbytes} bytes, more than the limit of {most}; name the targets by their "
            "last parts",
            file=what,
            field="target_modules",
        )


def holds_model(folder: Path) -> bool:
    """Tell whether a folder holds a model, given instead of an adapter."""
    if not folder.is_dir() or (folder / CONFIG_NAME).exists():
        return False
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return WEIGHTS_NAME not in names and (
        "config.json" in names or weights_among(names) is not None
    )


def open_weights(folder: Path) -> SafetensorsFile:
    """Open ``adapter_model.safetensors``.

    Raises
    ------
    NolaEdgeError
        If it is missing, or its header breaks a rule of the format.
    """
    if not os.path.lexists(folder / WEIGHTS_NAME):
        if (folder / _PICKLED_NAME).exists():
            raise torch_file_refused(folder / _PICKLED_NAME, folder)
        raise AdapterError(f"has no {WEIGHTS_NAME}", file=folder)
    return SafetensorsFile.open(inside(folder, WEIGHTS_NAME))


def read_config(path: Path) -> dict[str, Any]:
    """Return the fields of a folder's ``adapter_config.json``; none of a file, or without it.

    Raises
    ------
    NolaEdgeError
        If it is not an object in JSON, or a link leads out of the folder.
    """
    if not os.path.lexists(path / CONFIG_NAME):
        return {}
    return loads_object(read_inside(path, CONFIG_NAME), file=path / CONFIG_NAME)


@contextlib.contextmanager
def kept_open(path: Path) -> Iterator[SafetensorsFile]:
    """Open a file, or a folder's, for tensors that stay in it; closed again if that fails.

    Raises
    ------
    NolaEdgeError
        As :func:`open_weights`, or if the file changed meanwhile.
    """
    with contextlib.ExitStack() as stack:
        opened = open_weights(path) if path.is_dir() else SafetensorsFile.open(path)
        file = stack.enter_context(opened)
        yield file
        file.check_unchanged()
        stack.pop_all()


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


def adapter_obstacle(peft_type: str) -> Obstacle:
    """Make a test for a folder with an adapter of a method and nothing else."""

    def test(path: Path) -> str | None:
        files = set(names_below(path))
        if files - _OWN_FILES:
            return foreign(files - _OWN_FILES)
        if CONFIG_NAME not in files:
            return f"holds no {CONFIG_NAME}"
        try:
            config = read_config(path)
        except (NolaEdgeError, OSError):
            return f"holds an {CONFIG_NAME} that cannot be read"
        if config.get("peft_type") == peft_type:
            return None
        return f"holds an {CONFIG_NAME} whose peft_type is not {peft_type}"

    return test
