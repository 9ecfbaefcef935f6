"""The file of a checkpoint, given itself or by its PEFT folder; tensors are checked when read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_folder import CONFIG_NAME, open_weights
from nola_edge.adapters.stored import StoredConfig
from nola_edge.files.paths import read_inside
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.strict_json import loads_object

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class CheckpointFile(FactorFile):
    """A checkpoint of the public code, opened read-only.

    Parameters
    ----------
    path : Path
        The file, or a PEFT folder with it.

    Attributes
    ----------
    path : Path
        Of the file.
    tensors : mapping
        Name -> :class:`~nola_edge.files.safetensors.TensorInfo`.
    fields : dict
        Those of ``adapter_config.json``; empty where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.fields = read_fields(path)
        file = open_weights(path) if path.is_dir() else SafetensorsFile.open(path)
        super().__init__(file, StoredConfig())
        self.path, self.tensors = file.path, file.tensors

    def numbers(self, name: str) -> NDArray[Any]:
        """Read a row of numbers as it is stored.

        Raises
        ------
        NolaEdgeError
            If it is not a row, is empty, is not F32, F16 or BF16, or is not finite.
        """
        shape = self.tensors[name].shape
        if len(shape) != 1 or shape[0] < 1:
            raise self.refusal(name, f"has shape {list(shape)}, must be a row of numbers")
        return self.vector(name, shape[0]).array()

    def integer(self, name: str) -> int:
        """Read a tensor that holds one integer.

        Raises
        ------
        AdapterError
            If it is not one.
        """
        info = self.tensors[name]
        if info.dtype not in ("I64", "I32") or info.shape not in ((1,), ()):
            raise self.refusal(
                name,
                f"is {info.dtype} {list(info.shape)}, but a seed is one I64; any other dtype loses "
                "digits",
            )
        return int(self.file.read(name).reshape(-1)[0])


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields of a folder's ``adapter_config.json``; none of a file, or without it."""
    if not (path / CONFIG_NAME).is_file():
        return {}
    return loads_object(read_inside(path, CONFIG_NAME), file=path / CONFIG_NAME)
