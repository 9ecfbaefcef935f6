"""What ``--force`` may replace: something of the kind that the command itself writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError, NolaEdgeError
from nola_edge.gguf.file import GgufFile
from nola_edge.jsonio import loads_object
from nola_edge.model_folder import is_index
from nola_edge.paths import read_inside
from nola_edge.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    #: Tells whether what stands at a path may be replaced.
    Replaceable = Callable[[Path], bool]

_SUFFIX = ".safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = {_ADAPTER_CONFIG, f"adapter_model{_SUFFIX}", f"head{_SUFFIX}"}


def nothing_yet(path: Path) -> bool:
    """Tell whether a path is an empty folder or an empty regular file."""
    if path.is_dir():
        return not os.listdir(path)
    return path.is_file() and path.stat().st_size == 0


def checkpoint_folder(companions: Collection[Path]) -> Replaceable:
    """Make a test for a folder with weights and nothing but these and files of given names."""
    own = {str(path) for path in companions}

    def test(path: Path) -> bool:
        names = os.listdir(path)
        if _ADAPTER_CONFIG in names or not any(name.endswith(_SUFFIX) for name in names):
            return False
        return all(
            name in own or ("/" not in name and (is_index(name) or name.endswith(_SUFFIX)))
            for name in names_below(path)
        )

    return test


def nola_folder(path: Path) -> bool:
    """Tell whether a folder holds a NOLA adapter and nothing else."""
    return _holds_adapter(path, "NOLA")


def lora_folder(path: Path) -> bool:
    """Tell whether a folder holds a LoRA and nothing else."""
    return _holds_adapter(path, "LORA")


def _holds_adapter(path: Path, peft_type: str) -> bool:
    files = set(names_below(path))
    if _ADAPTER_CONFIG not in files or not files <= _ADAPTER_FILES:
        return False
    try:
        config = loads_object(read_inside(path, _ADAPTER_CONFIG), file=path)
    except (NolaEdgeError, OSError):
        return False
    return config.get("peft_type") == peft_type


def packed_adapter(path: Path) -> bool:
    """Tell whether a file is a packed adapter."""
    return (_format_of(path) or "").startswith("nola-packed-")


def safetensors_file(path: Path) -> bool:
    """Tell whether a file is one of safetensors."""
    return _format_of(path) is not None


def _format_of(path: Path) -> str | None:
    """Return what a safetensors file says of itself, or nothing; None of what is no such file."""
    try:
        with SafetensorsFile.open(path) as file:
            return (file.metadata or {}).get("format", "")
    except FormatError:
        return None


def gguf_model(path: Path) -> bool:
    """Tell whether a file is a model in GGUF."""
    return _gguf_type(path) == "model"


def gguf_lora(path: Path) -> bool:
    """Tell whether a file is an adapter in GGUF."""
    return _gguf_type(path) == "adapter"


def _gguf_type(path: Path) -> object:
    """Return what a GGUF file says it is; None if it is not a GGUF file, or is broken."""
    try:
        with GgufFile.open(path) as file:
            return file.metadata.get("general.type", "model")
    except FormatError:
        return None


def names_below(folder: Path) -> list[str]:
    """Return every file below a folder, and the folders that are links or hidden."""
    found = []
    for place, folders, names in os.walk(folder):
        odd = [name for name in folders if Path(place, name).is_symlink() or name.startswith(".")]
        found += [str(Path(place, name).relative_to(folder)) for name in [*names, *odd]]
    return found
