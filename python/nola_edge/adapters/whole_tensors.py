"""Tensors that an adapter has whole: those of ``modules_to_save``, and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from nola_edge.dtypes import MERGEABLE, SAVE_AS_MERGEABLE
from nola_edge.errors import AdapterError, NotFiniteError, printable
from nola_edge.files.safetensors import METADATA
from nola_edge.files.tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensors import Tensor

#: What PEFT calls a layer that it has wrapped, and the weight that is frozen in it.
BASE_LAYER = ".base_layer"
FROZEN_WEIGHT = f"{BASE_LAYER}.weight"
_WRAPPED_BIAS = f"{BASE_LAYER}.bias"
INPUT_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "shared.weight",  # of T5 and BART, in encoder and decoder too
)
OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
#: What PEFT adds to ``modules_to_save`` for a classifier, whatever the model calls it.
HEADS = ("classifier", "score")
EMBEDDINGS = INPUT_EMBEDDINGS + OUTPUT_EMBEDDINGS


class Saving(Protocol):
    """A configuration or an adapter that announces modules whose tensors it has whole."""

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors are in the file whole."""


class Announcing(Saving, Protocol):
    """A configuration, of which two fields announce whole tensors."""

    @property
    def bias(self) -> str:
        """Return ``"none"``, or which biases are in the file."""


def stored_name(local: str, modules: Container[str]) -> str:
    """Return the name that PEFT gives a whole tensor: the bias of an adapted layer is wrapped."""
    module = local.removesuffix(".bias")
    return module + _WRAPPED_BIAS if module != local and module in modules else local


def local_name(stored: str) -> str:
    """Return the name in the model: PEFT names the bias of an adapted layer by what it wrapped."""
    if not stored.endswith(_WRAPPED_BIAS):
        return stored
    return stored.removesuffix(_WRAPPED_BIAS) + ".bias"


def is_saved(local: str, modules: Iterable[str]) -> bool:
    """Tell whether a tensor belongs to one of the modules that are saved whole.

    As PEFT finds them: ``norm`` is the end of ``layers.0.input_layernorm`` too.
    """
    return any(f"{module}." in local or local == module for module in modules)


def check_saved_modules(whole: Iterable[str], config: Saving, file: Path) -> None:
    """Refuse an adapter that lacks a module that ``modules_to_save`` announces.

    PEFT announces every name that it knows for a classifier's head; a model has one of them.

    Raises
    ------
    AdapterError
    """
    names, announced = list(whole), config.modules_to_save
    missing = [m for m in announced if not any(is_saved(name, [m]) for name in names)]
    if not set(HEADS) & set(announced) <= set(missing):  # there is a head
        missing = [module for module in missing if module not in HEADS]
    if missing:
        raise AdapterError(
            f"announces {printable(missing[0])!r}, but the adapter holds no tensor of it; save the "
            "adapter again, or remove the name if the model has no such module",
            file=file,
            field="modules_to_save",
            value=missing[0],
        )


def load_whole(
    file: SafetensorsFile, name: str, local: str, config: Announcing, *, own: str = "coefficients"
) -> Tensor:
    """Check the tensor `name`, called `local` in the model, if the configuration announces it.

    It stays in the file, which must stay open. What the adapter's `own` tensors are called is for
    the message.
    """
    bias = config.bias != "none" and local.endswith(".bias")
    where: dict[str, Any] = {"file": file.path, "field": name}
    if local == METADATA or not (is_saved(local, config.modules_to_save) or bias):
        advice = ""
        if local.endswith(EMBEDDINGS):
            advice = (
                "; PEFT saved an embedding as well: save with save_embedding_layers=False, or "
                "name it in modules_to_save if it was trained or resized"
            )
        raise AdapterError(
            f"is neither {own} nor a tensor that modules_to_save or bias announce{advice}",
            **where,
        )
    info = file.tensors[name]
    if info.dtype not in MERGEABLE:
        raise AdapterError(
            f"has dtype {info.dtype}, must be {', '.join(MERGEABLE)}; {SAVE_AS_MERGEABLE}", **where
        )
    tensor = StoredTensor(file, name)
    if not tensor.is_finite():
        raise NotFiniteError("holds an infinite or NaN value", **where)
    return tensor
