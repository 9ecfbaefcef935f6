"""The file of a checkpoint; tensors are checked when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.adapters.stored import StoredConfig
from nola_edge.errors import AdapterError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from nola_edge.files.safetensors import SafetensorsFile


class CheckpointFile(FactorFile):
    """A checkpoint of the public code.

    Parameters
    ----------
    file : SafetensorsFile
    fields : mapping
        Those of ``adapter_config.json`` beside it; empty where there is none.

    Attributes
    ----------
    path : Path
        Of the file.
    tensors : mapping
        Name -> :class:`~nola_edge.files.safetensors.TensorInfo`.
    """

    def __init__(self, file: SafetensorsFile, fields: Mapping[str, Any]) -> None:
        super().__init__(file, StoredConfig())
        self.fields, self.path, self.tensors = fields, file.path, file.tensors

    def numbers(self, name: str) -> NDArray[Any]:
        """Read a row of at least one number in F32, F16 or BF16, as it is stored."""
        shape = self.tensors[name].shape
        if len(shape) != 1 or shape[0] < 1:
            raise self.refusal(name, f"has shape {list(shape)}, must be a row of numbers")
        return self.vector(name, shape[0]).array()

    def integer(self, name: str) -> int:
        """Read a tensor that holds one integer."""
        info = self.tensors[name]
        if info.dtype not in ("I64", "I32") or info.shape not in ((1,), ()):
            raise self.refusal(
                name,
                f"is {info.dtype} {list(info.shape)}, but a seed is one I64; any other dtype loses "
                "digits",
            )
        return int(self.file.read(name).reshape(-1)[0])

    def check_counts(self, counts: Mapping[str, int], announced: object = None) -> None:
        """Refuse different numbers of coefficients, by tensor: the public code has one for all."""
        first, wanted = next(iter(counts.items()))
        said = f"{first} has {wanted}; the public code has the same number in every layer"
        if announced is not None:
            said = f"the configuration says {printable(announced)}"
        for name, count in counts.items():
            if count != (wanted if announced is None else announced):
                raise self.refusal(name, f"has {count} coefficients, {said}")

    def field_refusal(self, field: str, message: str) -> AdapterError:
        """Return the error that names a field of the configuration."""
        return AdapterError(message, file=self.path.parent / CONFIG_NAME, field=field)
