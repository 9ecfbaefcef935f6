"""Which base a model was loaded from, and whether it is the one an adapter was trained on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from nola_edge.adapters.fingerprints import checkpoint_fingerprint
from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.errors import NolaEdgeError


def loaded_from(model: nn.Module) -> str | None:
    """Return what a model was loaded from, as PEFT will record it."""
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(base, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def fingerprint_of_folder(
    base: str | None, modules: Iterable[str], parts: Mapping[str, TensorPart]
) -> str | None:
    """Return the fingerprint of a base that is a local folder, or None if it is unknown.

    A base in another format, or with other names, just has none.
    """
    if base and Path(base).is_dir():
        with contextlib.suppress(NolaEdgeError, OSError):
            return checkpoint_fingerprint(base, modules, parts)
    return None


def warn_of_other_base(
    model: nn.Module,
    adapter_name: str,
    recorded: str | None,
    modules: Iterable[str],
    parts: Mapping[str, TensorPart],
) -> None:
    """Warn if a model comes from another local base than its adapter was trained on.

    Parameters
    ----------
    model : nn.Module
    adapter_name : str
    recorded : str, optional
        The adapter's ``base_fingerprint``; a fresh adapter has none.
    modules : iterable of str
        The adapted modules, as the adapter names them.
    parts : mapping
        Module -> stored tensor, where its name does not say it.
    """
    base = loaded_from(model)
    found = fingerprint_of_folder(base, modules, parts) if recorded else None
    if found not in (None, recorded):
        warnings.warn(
            f"The adapter {adapter_name!r} was trained on another base than {base!r}, which this "
            f"model was loaded from (`base_fingerprint` is {recorded}, the folder gives {found}): "
            "another model, or one that the adapter is merged into already and would change twice. "
            "Load the base that the adapter was trained on.",
            stacklevel=2,
        )
