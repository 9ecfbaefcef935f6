"""Files of ``torch.save``, of which only tensors are taken.

Such a file is a zip archive with a pickle in it. torch reads it with ``weights_only=True``, which
runs nothing but a short list of constructors, and maps it, so that only what is used is read.
Before that the archive is looked at: nothing in it may be compressed, or a small file could ask
for any amount of memory. Afterwards each tensor is: one of stride 0 claims elements that no byte
stands for.

Of torch before 2.10 the restricted reader itself can be attacked (CVE-2025-32434 before 2.6,
CVE-2026-24747 before 2.10), so that it is not used.
"""

from __future__ import annotations

import importlib
import os
import pickle
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import FormatError, printable
from nola_edge.input_file import InputFile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_OLDEST_TORCH = (2, 10)
#: Where a training script puts the tensors beside other things.
_INNER = ("model_state_dict", "state_dict")
_DTYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
}
_SAFE_WAY = (
    "where you trust it, save its tensors with safetensors.torch.save_file and convert that file"
)


@dataclass(frozen=True)
class TorchEntry:
    """A tensor of a torch file: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def is_torch_file(path: Path) -> bool:
    """Tell whether a file begins as a zip archive or as a pickle does; no safetensors file does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FormatError(f"cannot be opened: {error.strerror}", file=path) from None
    try:
        begin = os.pread(fd, 9, 0)
    except OSError:
        return False  # a folder or a pipe, which the readers refuse by name
    finally:
        os.close(fd)
    # A safetensors file may begin with any length, but then its header begins.
    return begin.startswith((_ZIP, _PICKLE)) and begin[8:] != b"{"


class TorchFile(InputFile):
    """A file of ``torch.save``, opened read-only; its tensors have the names of the state dict.

    Attributes
    ----------
    tensors : dict
        Name -> :class:`TorchEntry`.

    Raises
    ------
    FormatError
        If torch is missing or too old, or the file is not in torch's zip format, needs more than
        tensors, or holds a tensor that its bytes do not.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._check_archive()
            self._values = self._load()
            self.check_unchanged()
            self.tensors = {name: self._entry(name, v) for name, v in self._values.items()}
        except BaseException:
            self.close()
            raise

    def _check_archive(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                compressed = [
                    e for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED
                ]
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError):
            raise FormatError(
                "is not in the zip format of torch.save: it is damaged, of torch before 1.6, or "
                f"some other pickle, which could run code and is never read; {_SAFE_WAY}",
                file=self.path,
            ) from None
        if compressed:
            raise FormatError(
                "is compressed within its archive, which torch.save never does",
                file=self.path,
                field=compressed[0].filename,
            )

    def _load(self) -> dict[str, Any]:
        torch = _torch(self.path)
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise FormatError(
                "holds more than tensors and needs pickle, which could run code and is never used; "
                f"{_SAFE_WAY}",
                file=self.path,
            ) from None
        except Exception as error:
            # torch raises whatever a broken file leads it to.
            text = printable(str(error).split("\n", 1)[0] or type(error).__name__)
            raise FormatError(f"torch cannot read it: {text}", file=self.path) from None
        for name in _INNER:
            if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
                loaded = loaded[name]
        if not isinstance(loaded, dict):
            raise FormatError(
                f"holds a {type(loaded).__name__}, not a mapping from names to tensors",
                file=self.path,
            )
        return {
            name: value
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }

    def _entry(self, name: str, value: Any) -> TorchEntry:
        strided = str(value.layout) == "torch.strided" and value.device.type == "cpu"
        if not strided or value.numel() * value.element_size() > self.size:
            raise FormatError(
                f"claims shape {printable(list(value.shape))}, which is no plain tensor of the "
                f"file's {self.size} bytes",
                file=self.path,
                field=name,
            )
        kind = str(value.dtype)
        return TorchEntry(_DTYPES.get(kind, kind), tuple(value.shape))

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor.

        Raises
        ------
        FormatError
            If numpy has no such dtype.
        """
        entry = self.tensors[name]
        if entry.dtype not in _DTYPES.values():
            raise FormatError(f"has dtype {entry.dtype}", file=self.path, field=name)
        torch = importlib.import_module("torch")
        flat = self._values[name].detach().reshape(-1).contiguous()
        raw: NDArray[Any] = np.array(flat.view(torch.uint8).numpy())
        return raw.view(numpy_dtype(entry.dtype)).reshape(entry.shape)


def _torch(path: Path) -> Any:
    if find_spec("torch") is None:
        raise FormatError(
            "is a torch file and torch is not installed: pip install torch, or convert it "
            "elsewhere with safetensors.torch.save_file",
            file=path,
        )
    torch = importlib.import_module("torch")
    version = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        raise FormatError(
            f"is a torch file, and torch {torch.__version__} has a reader that a file can attack; "
            "update torch to 2.10 or newer, or save the tensors with safetensors.torch.save_file",
            file=path,
        )
    return torch
