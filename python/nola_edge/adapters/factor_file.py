"""A file of PEFT's that holds factors: what is read of it the same way for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.stored_matrix import StoredMatrix
from nola_edge.adapters.whole_tensors import FROZEN_WEIGHT, is_saved, load_whole, local_name
from nola_edge.dtypes import MERGEABLE, SAVE_AS_MERGEABLE
from nola_edge.errors import AdapterError, NotFiniteError
from nola_edge.files.tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from nola_edge.adapters.whole_tensors import Announcing
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensors import Tensor

#: What PEFT puts into the names of a module that is trained whole.
_ORIGINAL, _SAVED = ".original_module.", ".modules_to_save."


class FactorFile:
    """Reads factors, vectors and whole tensors of a file, each checked.

    Parameters
    ----------
    file : SafetensorsFile
    config : Announcing
        Announces whole tensors.
    """

    def __init__(self, file: SafetensorsFile, config: Announcing) -> None:
        self.file = file
        self.config = config

    def matrix(self, name: str) -> StoredMatrix:
        """Return a factor, which stays in the file."""
        info = self.file.tensors[name]
        if len(info.shape) != 2 or 0 in info.shape:
            advice = "merge LoRA of convolutions with PEFT"
            if len(info.shape) < 2 or 0 in info.shape:
                advice = (
                    "it is part of one, saved from a model that was split over processes "
                    "(DeepSpeed ZeRO-3, FSDP): gather the parameters and save again"
                )
            raise self.refusal(
                name, f"has shape {list(info.shape)}, but a factor is a matrix; {advice}"
            )
        self._check_dtype(name)
        matrix = StoredMatrix(self.file, name)
        self._check_finite(name, matrix)
        return matrix

    def vector(self, name: str, length: int) -> StoredTensor:
        """Return a vector, which stays in the file."""
        return self.tensor(name, (length,))

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return a tensor, which stays in the file."""
        found = self.file.tensors[name].shape
        if found != shape:
            raise self.refusal(name, f"has shape {list(found)}, must be {list(shape)}")
        self._check_dtype(name)
        tensor = StoredTensor(self.file, name)
        self._check_finite(name, tensor)
        return tensor

    def check_partners(self, name: str, stem: str, endings: Iterable[str]) -> None:
        """Refuse a module of which `name` is there, but not all of its tensors, stem + ending."""
        for ending in endings:
            if stem + ending not in self.file.tensors:
                raise self.refusal(name, f"has no partner {ending[1:]}; the file is not complete")

    def without_frozen(
        self,
        names: Mapping[str, str],
        modules: Container[str],
        accepts: Callable[[str, int, int], bool],
    ) -> dict[str, str]:
        """Leave out the weights that PEFT saves beside adapted embeddings: they are the base's.

        Parameters
        ----------
        names : mapping
            Stored name -> the same without PEFT's prefix.
        modules : collection of str
        accepts : callable
            As :meth:`LowRankAdapter.accepts`, of one of these modules.
        """
        rest = {}
        for name, local in names.items():
            module = local.removesuffix(FROZEN_WEIGHT)
            if module == local or module not in modules:
                rest[name] = local
                continue
            shape = self.file.tensors[name].shape
            if len(shape) != 2 or not (accepts(module, *shape) or accepts(module, *shape[::-1])):
                raise self.refusal(name, f"has shape {list(shape)}, which its factors do not fit")
        return rest

    def whole_tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Return tensor name -> whole tensor, of stored name -> the same without PEFT's prefix."""
        whole: dict[str, Tensor] = {}
        for name, found in names.items():
            if self._is_copy(name, found):
                continue
            local = local_name(found)
            if local in whole:
                raise self.refusal(name, f"is also present as {local}")
            whole[local] = load_whole(self.file, name, local, self.config, own="a factor")
        return whole

    def _is_copy(self, name: str, local: str) -> bool:
        """Tell whether PEFT has written a bias once more, as ``bias="all"`` makes it do.

        Of a module that is saved whole it writes the frozen bias, and the trained one a second
        time.
        """
        if _ORIGINAL in local:
            return is_saved(local.partition(_ORIGINAL)[0], self.config.modules_to_save)
        twin = name.replace(_SAVED, ".")
        if twin == name or twin not in self.file.tensors:
            return False
        one, other = (StoredTensor(self.file, which) for which in (name, twin))
        if one.dtype != other.dtype or one.array().tobytes() != other.array().tobytes():
            raise self.refusal(name, f"differs from {twin}, of which it should be a copy")
        return True

    def _check_dtype(self, name: str) -> None:
        dtype = self.file.tensors[name].dtype
        if dtype not in MERGEABLE:
            raise self.refusal(
                name, f"has dtype {dtype}, must be {', '.join(MERGEABLE)}; {SAVE_AS_MERGEABLE}"
            )

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_finite():
            raise NotFiniteError(
                "holds an infinite or NaN value; the training diverged",
                file=self.file.path,
                field=name,
            )

    def refusal(self, name: str, message: str) -> AdapterError:
        """Return the error that names a tensor."""
        return AdapterError(message, file=self.file.path, field=name)
