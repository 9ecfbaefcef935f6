"""Load a transformers model with adapters merged in, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge import arguments
from nola_edge.transformers.config import NolaMergeConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def load_merged(
    model_class: Any,
    base: str | Path,
    adapter: Any,
    *,
    check_base: bool = True,
    rename: Mapping[str, str] | Iterable[str] | None = None,
    **options: Any,
) -> Any:
    """Load a transformers model and merge adapters into its weights as they are read.

    Parameters
    ----------
    model_class : type
        Such as ``transformers.AutoModelForCausalLM``.
    base : path
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
    check_base, rename
        As for :class:`NolaMergeConfig`.
    **options
        For ``from_pretrained``.

    Returns
    -------
    transformers.PreTrainedModel
        A plain model.

    Raises
    ------
    NolaEdgeError
        If adapter and base do not fit, or a merged weight is not finite.
    """
    arguments.path("base", base)  # a name on the Hub is one too
    return model_class.from_pretrained(
        base, quantization_config=NolaMergeConfig(adapter, check_base, rename), **options
    )
