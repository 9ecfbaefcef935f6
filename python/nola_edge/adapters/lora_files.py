"""The tensors of a LoRA as PEFT saves it, each checked.

PEFT's names within ``base_model.model.<module>``: ``lora_A.weight`` (r, in) and ``lora_B.weight``
(out, r) of a layer; ``lora_embedding_A`` (r, tokens) and ``lora_embedding_B`` (features, r) of an
embedding, whose weight is stored as (tokens, features); ``lora_B.bias`` (out,) with ``lora_bias``;
``lora_magnitude_vector`` (out,) with ``use_dora``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.patterns import PatternTable
from nola_edge.adapters.peft_fields import WITH_PEFT
from nola_edge.adapters.peft_folder import CONFIG_NAME, prefixed_names
from nola_edge.adapters.whole_tensors import BASE_LAYER
from nola_edge.errors import AdapterError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nola_edge.adapters.lora_config import LoraConfig
    from nola_edge.adapters.matrix_parts import WindowedMatrix
    from nola_edge.adapters.stored_matrix import StoredMatrix
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensors import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
BIAS = ".lora_B.bias"
MAGNITUDE = ".lora_magnitude_vector"
_PARTNERS = {A: B, B: A, EMBEDDING_A: EMBEDDING_B, EMBEDDING_B: EMBEDDING_A}
_TWO_LAYOUTS = (
    "belongs to a stack of experts (target_parameters), which PEFT and Unsloth lay out "
    "differently, and nothing here says which layout this is; tell merge, verify or inspect: "
    "--moe-layout peft (trained with PEFT), or --moe-layout unsloth (with Unsloth before it wrote "
    "lora_B_layout, September 2026); in Python load_adapter(…, moe_layout=)"
)


def container_of(module: str, parameters: Sequence[str]) -> str | None:
    """Return the module of which PEFT adapted parameters under this name, None if it is a layer.

    Each further parameter of a module is below ``base_layer`` once more. A matrix called
    ``weight`` is adapted as that of a layer is.
    """
    container = module
    while container.endswith(BASE_LAYER):
        container = container.removesuffix(BASE_LAYER)
    return container if any(holds(container, name) for name in parameters) else None


def holds(container: str, parameter: str) -> bool:
    """Tell whether a module holds a stack that an entry of ``target_parameters`` may mean.

    An entry of one part only, as adapters of older models get it, is of a module called experts.
    """
    holder, _, name = parameter.rpartition(".")
    return name != "weight" and f".{container}".endswith(f".{holder or 'experts'}")


@dataclass(frozen=True)
class LoraModule:
    """The two factors of one module, in their file.

    Attributes
    ----------
    a : WindowedMatrix
        (r, in_features); of a stack of experts (experts * r, x).
    b : WindowedMatrix
        (out_features, r); of a stack of experts (y, experts * r).
    scaling : float
    bias : Tensor or None
        (out_features,), added to the layer's bias times the scaling.
    is_embedding : bool
    magnitude : Tensor or None
        (out_features,), DoRA's norms of the merged weights.
    """

    a: WindowedMatrix
    b: WindowedMatrix
    scaling: float
    bias: Tensor | None = None
    is_embedding: bool = False
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return the (out_features, in_features) of the factors."""
        return self.b.shape[0], self.a.shape[1]


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
        self._tensors = FactorFile(file, config)
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
        self._check_announced(parts)
        modules = {
            module: self._module(module, names)
            if container_of(module, self._config.target_parameters) is None
            else self._stack(names)
            for module, names in parts.items()
        }
        rest = self._tensors.without_frozen(
            rest, modules, lambda module, *shape: modules[module].shape == shape
        )
        for name, local in rest.items():
            self._check_known(name, local)
        return modules, self._tensors.whole_tensors(rest)

    def _module(self, module: str, names: dict[str, str]) -> LoraModule:
        self._check_complete(names)
        is_embedding = EMBEDDING_A in names
        name_a, name_b = (
            names[ending] for ending in ((EMBEDDING_A, EMBEDDING_B) if is_embedding else (A, B))
        )
        a, b = self._tensors.matrix(name_a), self._tensors.matrix(name_b)
        rank, alpha = self._rank_and_alpha(module)
        self._check_rank(name_a, a, a.shape[0], rank)
        self._check_rank(name_b, b, b.shape[1], rank)
        has_bias = self._config.lora_bias and not is_embedding
        return LoraModule(
            a,
            b,
            self._config.scaling(rank, alpha),
            self._vector(names, name_b, BIAS, has_bias, b.shape[0]),
            is_embedding,
            self._vector(names, name_b, MAGNITUDE, self._config.use_dora, b.shape[0]),
        )

    def _check_announced(self, modules: Iterable[str]) -> None:
        """Refuse a file without factors of a stack that the configuration announces."""
        parameters = self._config.target_parameters
        found = {container_of(module, parameters) for module in modules} - {None}
        for name in parameters:
            if not name.endswith(".weight") and not any(holds(str(c), name) for c in found):
                raise self._tensors.refusal(
                    "target_parameters",
                    f"announces {printable(repr(name))} in {CONFIG_NAME}, but none of its factors "
                    "are here; the file is not complete",
                )

    def _stack(self, names: dict[str, str]) -> LoraModule:
        """Return the factors of a stack of experts, whose rank only the base says."""
        self._check_complete(names)
        config = self._config
        if names.keys() != {A, B} or config.fan_in_fan_out or config.lora_bias or config.use_dora:
            raise self._tensors.refusal(
                names.get(A, next(iter(names.values()))),
                "belongs to a stack of experts (target_parameters), for which embeddings, biases, "
                f"DoRA and fan_in_fan_out are not supported; {WITH_PEFT}",
            )
        a, b = self._tensors.matrix(names[A]), self._tensors.matrix(names[B])
        if a.shape[0] != b.shape[1]:
            self._check_rank(names[B], b, b.shape[1], a.shape[0])
        if config.expert_layout == "unknown":
            raise self._tensors.refusal(names[B], _TWO_LAYOUTS)
        return LoraModule(a, b, config.scaling(config.r, config.lora_alpha))

    def _check_complete(self, names: dict[str, str]) -> None:
        """Refuse a module whose tensors are not those of one layer or one embedding."""
        for ending, partner in _PARTNERS.items():
            if ending in names and partner not in names:
                raise self._tensors.refusal(
                    names[ending], f"has no partner {partner[1:]}; the file is not complete"
                )
        if A not in names and EMBEDDING_A not in names:
            name = next(iter(names.values()))
            raise self._tensors.refusal(name, "has no factors; the file is not complete")
        if A in names and EMBEDDING_A in names:
            raise self._tensors.refusal(
                names[A], "belongs to a layer, but the same module is also an embedding"
            )

    def _check_rank(self, name: str, factor: StoredMatrix, found: int, rank: int) -> None:
        if found != rank:
            shape = " x ".join(map(str, factor.shape))
            raise self._tensors.refusal(
                name,
                f"is {shape}, of rank {found}; {CONFIG_NAME} says rank {rank} (r, or "
                "rank_pattern): correct it there, since the scaling follows from it",
            )

    def _rank_and_alpha(self, module: str) -> tuple[int, float]:
        try:
            return self._ranks[module], self._alphas[module]
        except AdapterError as error:
            error.file = self._file.path
            raise

    def _vector(
        self, names: dict[str, str], beside: str, ending: str, wanted: bool, out_features: int
    ) -> Tensor | None:
        """Return what a field of the configuration announces, one number for every output."""
        field = {BIAS: "lora_bias", MAGNITUDE: "use_dora"}[ending]
        if ending not in names:
            if wanted:
                raise self._tensors.refusal(
                    beside, f"has no {ending[1:]} beside it, which {field} announces"
                )
            return None
        name = names[ending]
        if not wanted:
            raise self._tensors.refusal(
                name, f"is present, but {field} does not announce it in {CONFIG_NAME}"
            )
        return self._tensors.vector(name, out_features)

    def _check_known(self, name: str, local: str) -> None:
        if ".lora_A." in local or ".lora_B." in local:
            raise self._tensors.refusal(
                name,
                "has an adapter's name between factor and weight; save it with PEFT's "
                "save_pretrained, which leaves that name out (…lora_A.weight)",
            )
