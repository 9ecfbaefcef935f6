"""Models whose output layer shares the tensor of the input embedding.

A merge keeps such a pair together unless an adapter brings one half of it whole
(``modules_to_save``): then the halves differ, and files that still call them tied would be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.whole_tensors import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from nola_edge.errors import MismatchError
from nola_edge.files.paths import read_inside
from nola_edge.files.strict_json import encode, loads_object

if TYPE_CHECKING:
    from nola_edge.files.checkpoint import Checkpoint
    from nola_edge.merge.plan import MergePlan

CONFIG_NAME = "config.json"
_FLAG = "tie_word_embeddings"
_LANGUAGE_MODELS = ("LM", "LMHeadModel", "ForConditionalGeneration")


def check_tied(plan: MergePlan) -> None:
    """Refuse to change an input embedding that is the output layer too.

    In training the input had a tensor of its own, or a low-rank update, and the output kept the
    old one; which name the output would need in the files, only the model's code knows.

    Raises
    ------
    MismatchError
    """
    changed = [n for n in (*plan.replaced, *plan.merges) if n.endswith(INPUT_EMBEDDINGS)]
    if not changed or any(
        name.endswith(OUTPUT_EMBEDDINGS) for name in (*plan.base.tensors, *plan.added)
    ):
        return
    if _is_tied(base_config(plan.base)):
        raise MismatchError(
            "is tied to the output layer, and the adapter changes it for the input alone; save "
            f"the base with {_FLAG}=False (lm_head as a tensor of its own) and merge into that",
            file=plan.base.path,
            field=changed[0],
        )


def untied_config(plan: MergePlan) -> bytes | None:
    """Return ``config.json`` without the tie where an adapter adds an output layer, else None."""
    if not any(name.endswith(OUTPUT_EMBEDDINGS) for name in plan.added):
        return None
    config = base_config(plan.base)
    if not _is_tied(config):
        return None
    config[_FLAG] = False
    return encode(config, file=CONFIG_NAME, indent=2, ensure_ascii=False) + b"\n"


def base_config(base: Checkpoint) -> dict[str, Any]:
    """Return a base's ``config.json``; it is empty where there is none.

    Raises
    ------
    NolaEdgeError
        If it cannot be read, or is not strict JSON.
    """
    if not base.is_folder or not (base.path / CONFIG_NAME).is_file():
        return {}
    return loads_object(read_inside(base.path, CONFIG_NAME), file=base.path / CONFIG_NAME)


def _is_tied(config: dict[str, Any]) -> bool:
    """Tell whether a configuration ties; language models do where nothing is said."""
    architectures = config.get("architectures") or []
    generative = any(str(name).endswith(_LANGUAGE_MODELS) for name in architectures)
    return bool(config.get(_FLAG, generative))
