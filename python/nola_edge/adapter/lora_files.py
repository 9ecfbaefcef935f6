"""The tensors of a LoRA as PEFT saves it, each checked.

PEFT's names within ``base_model.model.<module>``: ``lora_A.weight`` (r, in) and ``lora_B.weight``
(out, r) of a layer; ``lora_embedding_A`` (r, tokens) and ``lora_embedding_B`` (features, r) of an
embedding, whose weight is stored as (tokens, features); ``lora_B.bias`` (out,) with ``lora_bias``;
``lora_magnitude_vector`` (out,) with ``use_dora``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.adapter.files import (
    CONFIG_NAME,
    is_saved,
    load_whole,
    local_name,
    prefixed_names,
)
from nola_edge.adapter.patterns import PatternTable
from nola_edge.adapter.stored_matrix import StoredMatrix
from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import AdapterError, NotFiniteError
from nola_edge.tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.adapter.lora_config import LoraConfig
    from nola_edge.safetensors_file import SafetensorsFile
    from nola_edge.tensors import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
BIAS = ".lora_B.bias"
MAGNITUDE = ".lora_magnitude_vector"
_PARTNERS = {A: B, B: A, EMBEDDING_A: EMBEDDING_B, EMBEDDING_B: EMBEDDING_A}
_FROZEN = ".base_layer.weight"
#: What PEFT puts into the names of a module that is trained whole.
_ORIGINAL, _SAVED = ".original_module.", ".modules_to_save."


@dataclass(frozen=True)
class LoraModule:
    """The two factors of one module, in their file.

    Attributes
    ----------
    a : StoredMatrix
        (r, in_features).
    b : StoredMatrix
        (out_features, r).
    scaling : float
    bias : Tensor or None
        (out_features,), added to the layer's bias times the scaling.
    is_embedding : bool
    magnitude : Tensor or None
        (out_features,), DoRA's norms of the merged weights.
    """

    a: StoredMatrix
    b: StoredMatrix
    scaling: float
    bias: Tensor | None
    is_embedding: bool
    magnitude: Tensor | None = None


def read_lora(
    file: SafetensorsFile, config: LoraConfig
) -> tuple[dict[str, LoraModule], dict[str, Tensor]]:
    """Return module -> factors, and tensor name -> whole tensor; both stay in the file.

    Raises
    ------
    NolaEdgeError
        If a tensor is not what the configuration announces, or a value is not finite.
    """
    return _Reader(file, config).read()


class _Reader:
    """Sorts the tensors of a file into factors and whole tensors; each is used or refused."""

    def __init__(self, file: SafetensorsFile, config: LoraConfig) -> None:
        self._file = file
        self._config = config
        self._ranks = PatternTable(config.rank_pattern, config.r)
        self._alphas = PatternTable(config.alpha_pattern, config.lora_alpha)

    def read(self) -> tuple[dict[str, LoraModule], dict[str, Tensor]]:
        """Return module -> factors, and tensor name -> whole tensor."""
        parts: dict[str, dict[str, str]] = {}
        rest: dict[str, str] = {}
        for name, stored in prefixed_names(self._file):
            # Some versions of PEFT call the vector's only parameter by its name.
            local = stored.removesuffix(".weight") if MAGNITUDE in stored else stored
            ending = next((e for e in (*_PARTNERS, BIAS, MAGNITUDE) if local.endswith(e)), "")
            module = local.removesuffix(ending)
            if ending and module:
                parts.setdefault(module, {})[ending] = name
            else:
                rest[name] = local
        if not parts:
            raise AdapterError(
                f"has no factors (no *{A}); is this a LoRA that PEFT saved?", file=self._file.path
            )
        modules = {module: self._module(module, names) for module, names in parts.items()}
        return modules, self._whole_tensors(rest, modules)

    def _module(self, module: str, names: dict[str, str]) -> LoraModule:
        for ending, partner in _PARTNERS.items():
            if ending in names and partner not in names:
                raise self._refusal(
                    names[ending], f"has no partner {partner[1:]}; the file is not complete"
                )
        for ending in (BIAS, MAGNITUDE):
            if ending in names and not {A, EMBEDDING_A} & set(names):
                raise self._refusal(names[ending], "has no factors; the file is not complete")
        is_embedding = EMBEDDING_A in names
        if is_embedding and A in names:
            raise self._refusal(names[A], "is of a layer, and the same module is an embedding too")
        endings = (EMBEDDING_A, EMBEDDING_B) if is_embedding else (A, B)
        a, b = (self._matrix(names[ending]) for ending in endings)
        rank, alpha = self._rank_and_alpha(module)
        for found, shape, name in (
            (a.shape[0], a.shape, names[endings[0]]),
            (b.shape[1], b.shape, names[endings[1]]),
        ):
            if found != rank:
                raise self._refusal(
                    name,
                    f"is {shape[0]} x {shape[1]}, of rank {found}; {CONFIG_NAME} says rank {rank} "
                    "(r, or rank_pattern): correct it there, since the scaling follows from it",
                )
        wants = {
            BIAS: self._config.lora_bias and not is_embedding,
            MAGNITUDE: self._config.use_dora,
        }
        bias, magnitude = (
            self._vector(names, names[endings[1]], ending, wanted, b.shape[0])
            for ending, wanted in wants.items()
        )
        s = self._config.scaling(rank, alpha)
        return LoraModule(a, b, s, bias, is_embedding, magnitude)

    def _rank_and_alpha(self, module: str) -> tuple[int, float]:
        try:
            return self._ranks[module], self._alphas[module]
        except AdapterError as error:
            error.file = self._file.path
            raise

    def _matrix(self, name: str) -> StoredMatrix:
        info = self._file.tensors[name]
        if len(info.shape) != 2 or 0 in info.shape:
            advice = "merge LoRA of convolutions with PEFT"
            if len(info.shape) < 2 or 0 in info.shape:
                advice = (
                    "it is a part of one, saved from a model that was split over processes "
                    "(DeepSpeed ZeRO-3, FSDP): gather the parameters, and save again"
                )
            raise self._refusal(
                name, f"has shape {list(info.shape)}, and a factor is a matrix; {advice}"
            )
        self._check_dtype(name)
        matrix = StoredMatrix(self._file, name)
        self._check_finite(name, matrix)
        return matrix

    def _vector(
        self, names: dict[str, str], beside: str, ending: str, wanted: bool, out_features: int
    ) -> Tensor | None:
        """Return what a field of the configuration announces, one number for every output."""
        field = {BIAS: "lora_bias", MAGNITUDE: "use_dora"}[ending]
        if ending not in names:
            if wanted:
                raise self._refusal(
                    beside, f"has no {ending[1:]} beside it, which {field} announces"
                )
            return None
        name, shape = names[ending], self._file.tensors[names[ending]].shape
        if not wanted:
            raise self._refusal(
                name, f"is there, and {field} does not announce it in {CONFIG_NAME}"
            )
        if shape != (out_features,):
            raise self._refusal(name, f"has shape {list(shape)}, B has {out_features} rows")
        self._check_dtype(name)
        tensor = StoredTensor(self._file, name)
        self._check_finite(name, tensor)
        return tensor

    def _check_dtype(self, name: str) -> None:
        dtype = self._file.tensors[name].dtype
        if dtype not in MERGEABLE:
            raise self._refusal(name, f"has dtype {dtype}, must be {', '.join(MERGEABLE)}")

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_finite():
            raise NotFiniteError(
                "holds an infinite or NaN value; the training diverged",
                file=self._file.path,
                field=name,
            )

    def _whole_tensors(
        self, rest: dict[str, str], modules: Mapping[str, LoraModule]
    ) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, found in rest.items():
            frozen = found.removesuffix(_FROZEN)
            if frozen != found and frozen in modules:
                self._check_frozen(name, modules[frozen])
                continue
            if self._is_copy(name, found):
                continue
            local = local_name(found)
            if local in whole:
                raise self._refusal(name, f"is there as {local} too")
            self._check_known(name, found)
            whole[local] = load_whole(self._file, name, local, self._config, own="a factor")
        return whole

    def _is_copy(self, name: str, local: str) -> bool:
        """Tell whether PEFT has written a bias once more, as ``bias="all"`` makes it do.

        Of a module that is saved whole it writes the frozen bias, and the trained one a second
        time.
        """
        if _ORIGINAL in local:
            return is_saved(local.partition(_ORIGINAL)[0], self._config.modules_to_save)
        twin = name.replace(_SAVED, ".")
        if twin == name or twin not in self._file.tensors:
            return False
        one, other = (StoredTensor(self._file, which) for which in (name, twin))
        if one.dtype != other.dtype or one.array().tobytes() != other.array().tobytes():
            raise self._refusal(name, f"differs from {twin}, of which it should be a copy")
        return True

    def _check_known(self, name: str, local: str) -> None:
        if ".lora_A." in local or ".lora_B." in local:
            raise self._refusal(
                name,
                "has a name between factor and weight; PEFT's save_pretrained leaves out the "
                "adapter's (…lora_A.weight): save it with that",
            )

    def _check_frozen(self, name: str, module: LoraModule) -> None:
        """Check the frozen weight that PEFT saves beside an adapted embedding; it is the base's."""
        out_features, in_features = module.b.shape[0], module.a.shape[1]
        wanted = ((out_features, in_features), (in_features, out_features))
        shape = self._file.tensors[name].shape
        if shape not in wanted:
            raise self._refusal(name, f"has shape {list(shape)}, which its factors do not fit")

    def _refusal(self, name: str, message: str) -> AdapterError:
        return AdapterError(message, file=self._file.path, field=name)
