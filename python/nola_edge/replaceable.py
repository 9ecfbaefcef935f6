"""What ``--force`` may replace: something of the kind that the command itself writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError
from nola_edge.gguf.file import GgufFile, is_gguf
from nola_edge.model_folder import is_index

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    #: Tells whether what stands at a path may be replaced.
    Replaceable = Callable[[Path], bool]

_SUFFIX = ".safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = {_ADAPTER_CONFIG, f"adapter_model{_SUFFIX}", f"head{_SUFFIX}", "README.md"}
_PACKED = b"nola-packed-"
#: More than stands before what tells packed adapters.
_BEGINNING = 1 << 13


def nothing_yet(path: Path) -> bool:
    """Tell whether a path is an empty folder or an empty file."""
    return not os.listdir(path) if path.is_dir() else path.stat().st_size == 0


def checkpoint_folder(companions: Collection[Path]) -> Replaceable:
    """Make a test for a folder with weights and nothing but these and files of given names."""
    own = {str(path) for path in companions}

    def test(path: Path) -> bool:
        names = os.listdir(path)
        if _ADAPTER_CONFIG in names or not any(name.endswith(_SUFFIX) for name in names):
            return False
        return all(
            name in own or ("/" not in name and (is_index(name) or name.endswith(_SUFFIX)))
            for name in _files(path)
        )

    return test


def adapter_folder(path: Path) -> bool:
    """Tell whether a folder holds an adapter, NOLA or LoRA, and nothing else."""
    files = set(_files(path))
    return _ADAPTER_CONFIG in files and files <= _ADAPTER_FILES


def packed_adapter(path: Path) -> bool:
    """Tell whether a file is a packed adapter."""
    return safetensors_file(path) and _PACKED in _begin(path)


def safetensors_file(path: Path) -> bool:
    """Tell whether a file begins as a safetensors file does."""
    begin = _begin(path)
    return begin[8:9] == b"{" and not is_gguf(path)


def gguf_model(path: Path) -> bool:
    """Tell whether a file is a model in GGUF."""
    return _gguf_type(path) == "model"


def gguf_lora(path: Path) -> bool:
    """Tell whether a file is an adapter in GGUF."""
    return _gguf_type(path) == "adapter"


def _gguf_type(path: Path) -> object:
    """Return what a GGUF file says it is; None of a file that is none, or is broken."""
    try:
        with GgufFile.open(path) as file:
            return file.metadata.get("general.type", "model")
    except FormatError:
        return None


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGINNING)


def _files(folder: Path) -> list[str]:
    """Return everything below a folder that is no folder, and folders that are links or hidden."""
    found = []
    for place, folders, names in os.walk(folder):
        odd = [name for name in folders if Path(place, name).is_symlink() or name.startswith(".")]
        found += [str(Path(place, name).relative_to(folder)) for name in [*names, *odd]]
    return found
