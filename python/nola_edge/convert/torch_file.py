"""Files of ``torch.save``, of which only tensors are taken.

Such a file is a zip archive with a pickle in it. torch reads it with ``weights_only=True``, which
runs nothing but a list of constructors, and maps it, so that only what is used is read. Before that
the archive is looked at: nothing in it may be compressed, or a small file could ask for any amount
of memory; and the pickle, without running it, may name nothing but what makes tensors, since
torch's own list has ``bytearray``. Afterwards each tensor is: one of stride 0 claims elements that
no byte stands for.

Of torch before 2.10 the restricted reader itself can be attacked (CVE-2025-32434 before 2.6,
CVE-2026-24747 before 2.10), so that it is not used.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pickletools
import warnings
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
_MAX_PICKLE_BYTES = 64 << 20
#: What the pickle of a state dict names.
_NAMED = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in (
            "BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short",
        )
    ),
}  # fmt: skip
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
                if not compressed:
                    self._check_pickles(archive)
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

    def _check_pickles(self, archive: zipfile.ZipFile) -> None:
        """Look at what the pickles name; nothing of them is run."""
        for entry in archive.infolist():
            if not entry.filename.endswith(".pkl"):
                continue
            if entry.file_size > _MAX_PICKLE_BYTES:
                raise FormatError(
                    f"takes {entry.file_size} bytes, more than the names of tensors can",
                    file=self.path,
                    field=entry.filename,
                )
            foreign = _foreign_name(archive.read(entry))
            if foreign is not None:
                raise FormatError(
                    f"holds more than plain tensors ({printable(foreign)}) and needs pickle, which "
                    f"could run code and is never used; {_SAFE_WAY}",
                    file=self.path,
                )

    def _load(self) -> dict[str, Any]:
        torch = _torch(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old storage classes
                loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise FormatError(
                "holds more than plain tensors and needs pickle, which could run code and is "
                f"never used; {_SAFE_WAY}",
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
        strided = strided and not (
            value.is_nested or value.is_quantized or value.is_neg() or value.is_conj()
        )
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
        try:
            plain = self._values[name].detach().clone(memory_format=torch.contiguous_format)
            raw: NDArray[Any] = np.array(plain.reshape(-1).view(torch.uint8).numpy())
        except RuntimeError as error:
            text = printable(str(error).split("\n", 1)[0])
            raise FormatError(
                f"torch cannot give its bytes: {text}", file=self.path, field=name
            ) from None
        return raw.view(numpy_dtype(entry.dtype)).reshape(entry.shape)


def _foreign_name(data: bytes) -> str | None:
    """Return the first thing a pickle names that is no part of a state dict, or None."""
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name == "GLOBAL" and argument in _NAMED:
                continue
            if code.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                return str(argument or code.name)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        return "a pickle that cannot be read"
    return None


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
