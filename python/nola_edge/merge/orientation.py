"""Square weights that are stored as (in, out), of which no shape tells that they are.

GPT-2's layers are Conv1D, its output layer is not. PEFT turns each as it must be, and saves one
``fan_in_fan_out`` for all: an adapter of both kinds says of some what is wrong for them. Of a
weight that is not square, the shape tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.belongs import location
from nola_edge.errors import MismatchError, printable
from nola_edge.merge.tied import base_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.merge.low_rank import Term

#: Models of transformers that have Conv1D layers, and what these are called in all of them.
_MODELS = {"clvp_decoder", "clvp_encoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")


def check_orientations(base: Checkpoint, merges: Iterable[tuple[Term, ...]]) -> None:
    """Refuse terms that take a square Conv1D of a known model for a Linear, or the reverse.

    Raises
    ------
    MismatchError
    """
    square = [t for terms in merges for t in terms if may_be_turned(t)]
    if not square or _MODELS.isdisjoint(_model_types(base_config(base))):
        return
    for term in square:
        is_conv1d = term.module.rpartition(".")[2] in _LAYERS
        if is_conv1d != term.target.transposed:
            raise orientation_refused(term.adapter, term.target.tensor, is_conv1d, base.path)


def may_be_turned(term: Term) -> bool:
    """Tell whether the shape of a term's weight leaves its orientation open."""
    outputs, inputs = term.target.features
    return outputs == inputs and not term.adapter.is_embedding(term.module)


def orientation_refused(
    adapter: LowRankAdapter, name: str, is_conv1d: bool, where: Path
) -> MismatchError:
    """Return the refusal of an adapter that says of a weight the orientation that it has not."""
    stored = "(in, out), as a Conv1D" if is_conv1d else "(out, in)"
    who, said = printable(str(location(adapter))), str(not is_conv1d).lower()
    return MismatchError(
        f"is stored as {stored}, but {who} says fan_in_fan_out: {said}; PEFT saves only one value "
        "for layers of both kinds: train an adapter for each kind, or merge this one with PEFT "
        "(merge_and_unload, then save_pretrained)",
        file=where,
        field=name,
    )


def _model_types(config: Any) -> Iterator[str]:
    """Yield the types of a model and of its parts."""
    if isinstance(config, dict):
        yield str(config.get("model_type"))
        for value in config.values():
            yield from _model_types(value)
