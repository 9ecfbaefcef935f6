"""The tensors of a checkpoint, in a file or in a PEFT folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import AdapterError, FormatError, NotFiniteError
from nola_edge.files.paths import inside, read_inside
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.strict_json import loads_object
from nola_edge.files.torch_file import is_torch_file, torch_file_refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

_THEN = "nola-edge convert {}, with the options as they were"
_PICKLED_NAME = "adapter_model.bin"


class Source:
    """A checkpoint of the public code, opened read-only; a context manager.

    Attributes
    ----------
    path : Path
        The file with the tensors.
    tensors : mapping
        Name -> :class:`~nola_edge.files.safetensors.TensorInfo`.
    config : dict or None
        ``adapter_config.json``, where a folder was given.
    """

    def __init__(self, path: str | Path) -> None:
        given = Path(path)
        self.config = _read_config(given) if given.is_dir() else None
        self._file = SafetensorsFile.open(_weights_of(given) if given.is_dir() else _checked(given))
        self.path = self._file.path
        self.tensors = self._file.tensors

    def floats(self, name: str) -> NDArray[Any]:
        """Read a tensor of F32, F16 or BF16 as it is stored.

        Raises
        ------
        AdapterError
            If it has another dtype.
        NotFiniteError
            If a value is infinite or NaN.
        """
        dtype = self.tensors[name].dtype
        if dtype not in MERGEABLE:
            raise AdapterError(
                f"has dtype {dtype}, must be {', '.join(MERGEABLE)}", file=self.path, field=name
            )
        values = self._file.read(name)
        if not np.isfinite(values.astype(np.float32)).all():
            raise NotFiniteError("holds an infinite or NaN value", file=self.path, field=name)
        return values

    def integer(self, name: str) -> int:
        """Read a tensor that holds one integer.

        Raises
        ------
        AdapterError
            If it is none.
        """
        entry = self.tensors[name]
        if entry.dtype not in ("I64", "I32") or entry.shape not in ((1,), ()):
            raise AdapterError(
                f"is {entry.dtype} {list(entry.shape)}, a seed is one I64: in any other dtype it "
                "has lost digits",
                file=self.path,
                field=name,
            )
        return int(self._file.read(name).reshape(-1)[0])

    def check_unchanged(self) -> None:
        """Refuse a file that changed since it was opened."""
        self._file.check_unchanged()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _checked(path: Path) -> Path:
    if not os.path.lexists(path):
        raise FormatError("does not exist", file=path)
    if is_torch_file(path):
        raise torch_file_refused(path, then=_THEN)
    return path


def _weights_of(folder: Path) -> Path:
    if (folder / WEIGHTS_NAME).is_file():
        return inside(folder, WEIGHTS_NAME)
    if (folder / _PICKLED_NAME).is_file():
        raise torch_file_refused(folder / _PICKLED_NAME, folder, _THEN)
    raise AdapterError(
        f"has neither {WEIGHTS_NAME} nor {_PICKLED_NAME}; give the file itself", file=folder
    )


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    return loads_object(read_inside(folder, CONFIG_NAME), file=path)
