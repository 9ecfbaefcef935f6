"""What ``--force`` may replace: something of the kind that the command itself writes.

The tests return what is in the way, for a message that begins with the path: "holds notes.txt,
which this does not write". They return None of what may be replaced.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError, NolaEdgeError, printable
from nola_edge.files.folder import is_index
from nola_edge.files.paths import read_inside
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.strict_json import loads_object

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    #: Says what of a path keeps it from being replaced; None of one that may be.
    Obstacle = Callable[[Path], str | None]

_SUFFIX = ".safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = {_ADAPTER_CONFIG, f"adapter_model{_SUFFIX}", f"head{_SUFFIX}"}


def nothing_yet(path: Path) -> bool:
    """Tell whether a path is an empty folder or an empty regular file."""
    if path.is_dir():
        return not os.listdir(path)
    return path.is_file() and path.stat().st_size == 0


def anything(path: Path) -> str | None:
    """Say that a path holds something, whatever it is."""
    if nothing_yet(path):
        return None
    return _foreign(names_below(path)) if path.is_dir() else "is not empty"


def checkpoint_folder(companions: Collection[Path]) -> Obstacle:
    """Make a test for a folder with weights and nothing but these and files of given names."""
    own = {str(path) for path in companions}

    def is_own(name: str) -> bool:
        return name in own or ("/" not in name and (is_index(name) or name.endswith(_SUFFIX)))

    def test(path: Path) -> str | None:
        names = os.listdir(path)
        if _ADAPTER_CONFIG in names:
            return _foreign([_ADAPTER_CONFIG])
        foreign = [name for name in names_below(path) if not is_own(name)]
        if not foreign and not any(name.endswith(_SUFFIX) for name in names):
            return f"holds {printable(min(names))} but no weights"
        return _foreign(foreign)

    return test


def nola_folder(path: Path) -> str | None:
    """Say what keeps a folder from being a NOLA adapter and nothing else."""
    return _no_adapter(path, "NOLA")


def lora_folder(path: Path) -> str | None:
    """Say what keeps a folder from being a LoRA and nothing else."""
    return _no_adapter(path, "LORA")


def _no_adapter(path: Path, peft_type: str) -> str | None:
    files = set(names_below(path))
    if files - _ADAPTER_FILES:
        return _foreign(files - _ADAPTER_FILES)
    if _ADAPTER_CONFIG not in files:
        return f"holds no {_ADAPTER_CONFIG}"
    try:
        config = loads_object(read_inside(path, _ADAPTER_CONFIG), file=path)
    except (NolaEdgeError, OSError):
        return f"holds an {_ADAPTER_CONFIG} that cannot be read"
    if config.get("peft_type") == peft_type:
        return None
    return f"holds an {_ADAPTER_CONFIG} whose peft_type is not {peft_type}"


def _foreign(names: Collection[str]) -> str | None:
    if not names:
        return None
    more = " and more" * (len(names) > 1)
    return f"holds {printable(min(names))}{more}, which this does not write"


def packed_adapter(path: Path) -> str | None:
    """Say that a file is not a packed adapter."""
    packed = (_format_of(path) or "").startswith("nola-packed-")
    return None if packed else "is not a packed adapter"


def safetensors_file(path: Path) -> str | None:
    """Say that a file is not one of safetensors."""
    return "is not a safetensors file" if _format_of(path) is None else None


def _format_of(path: Path) -> str | None:
    """Return what a safetensors file says of itself, or nothing; None of what is no such file."""
    try:
        with SafetensorsFile.open(path) as file:
            return (file.metadata or {}).get("format", "")
    except FormatError:
        return None


def gguf_model(path: Path) -> str | None:
    """Say that a file is not a model in GGUF."""
    return None if _gguf_type(path) == "model" else "is not a GGUF model"


def gguf_lora(path: Path) -> str | None:
    """Say that a file is not an adapter in GGUF."""
    return None if _gguf_type(path) == "adapter" else "is not a GGUF adapter"


def _gguf_type(path: Path) -> object:
    """Return what a GGUF file says it is; None if it is not a GGUF file, or is broken."""
    from nola_edge.files.gguf import GgufFile

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
