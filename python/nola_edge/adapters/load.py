"""Load an adapter of any supported method, by its ``peft_type``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.hub import adapter_path
from nola_edge.adapters.nola import Adapter
from nola_edge.adapters.nola_config import PEFT_TYPE
from nola_edge.adapters.peft_folder import CONFIG_NAME, read_config
from nola_edge.adapters.whole_tensors import check_saved_modules
from nola_edge.errors import AdapterError, ArgumentError, FormatError, printable
from nola_edge.files.input_file import opening
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from nola_edge.adapters.base import LowRankAdapter

#: Methods that leave every weight alone.
_NO_WEIGHTS = (
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
)
#: Files of LoRA in other layouts than PEFT's: what diffusers calls its own, and parts of names.
_DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
_KOHYA_PARTS = (".lora_down.", ".lora_up.", ".hada_w1", ".lokr_w1")
_CONVERT = (
    "load it in diffusers (load_lora_weights) and save each part as PEFT does: "
    "pipe.unet.save_lora_adapter(…), or merge it there (fuse_lora, then save_pretrained)"
)


def load_adapter(
    path: str | Path,
    *,
    revision: str | None = None,
    drawn_on: str | None = None,
    lora_alpha: float | None = None,
    moe_layout: str | None = None,
) -> LowRankAdapter:
    """Load an adapter folder or a packed file, or download a folder by its Hub id.

    Only JSON and safetensors are read, never pickle.

    Parameters
    ----------
    path : path or str
        As for :meth:`Adapter.load`.
    revision : str, optional
        On the Hub.
    drawn_on : str, optional
        For a checkpoint of the public NOLA code: the device on which training drew its random
        matrices. ``"cpu"``, or a GPU by its name (``"a100"``) or its size (``"84x1536"``,
        multiprocessors and threads of each), followed by ``",older-torch"`` for 16-bit numbers as
        torch drew them before it excluded the upper bound.
    lora_alpha : float, optional
        For such a checkpoint: the value used in training, if no configuration records it.
    moe_layout : {"peft", "unsloth"}, optional
        How a LoRA of stacked experts (``target_parameters``) is laid out, if it does not record it
        itself: as by PEFT, or as by Unsloth until September 2026.

    Returns
    -------
    LowRankAdapter
        An :class:`Adapter` for NOLA, a :class:`~nola_edge.adapters.lora.LoraAdapter` for LoRA, a
        :class:`~nola_edge.adapters.vera.VeraAdapter` for VeRA, a
        :class:`~nola_edge.adapters.public_nola.adapter.PublicNolaAdapter` for the public NOLA code;
        for other methods, whatever class an installed package provides (entry points of the group
        ``nola_edge.adapters``).

    Raises
    ------
    NolaEdgeError
        If neither nola-edge nor an installed package knows its method, a file is missing, broken or
        cannot be read, or a field or a tensor is not understood.
    """
    folder = adapter_path(path, revision)
    with opening(folder):
        config = _read_config(folder) if folder.is_dir() else {}
        if _is_public(folder, config):
            from nola_edge.adapters.public_nola.adapter import PublicNolaAdapter

            return PublicNolaAdapter.load(folder, drawn_on=drawn_on, lora_alpha=lora_alpha)
        for field, value in (("drawn_on", drawn_on), ("lora_alpha", lora_alpha)):
            if value is not None:
                raise ArgumentError(
                    "is for checkpoints of the public NOLA code, and this is not one; leave it out",
                    file=folder,
                    field=field,
                )
        if not folder.is_dir():
            return _load_file(folder)
        method = config.get("peft_type")
        if method == PEFT_TYPE or not config:  # without a configuration, NOLA's reader says so
            return Adapter.load(folder)
        from nola_edge.adapters.lora_config import LoraConfig
        from nola_edge.adapters.methods import reader_of

        config = LoraConfig.with_layout(config, moe_layout, file=folder / CONFIG_NAME)
        read = reader_of(method, folder / CONFIG_NAME)
        if read is not None:
            adapter = read(folder, config)
            check_saved_modules(adapter.whole_tensors, adapter, folder / CONFIG_NAME)
            return adapter
    raise _unknown(method, folder / CONFIG_NAME)


def _is_public(folder: Path, config: dict[str, Any]) -> bool:
    if config.get("peft_type") == PEFT_TYPE:
        return False
    from nola_edge.adapters.public_nola.recognise import is_public_checkpoint

    return is_public_checkpoint(folder, config)


def is_of_experts(path: Path) -> bool:
    """Tell whether a local adapter is a LoRA of stacked experts, by its configuration."""
    return path.is_dir() and bool(_read_config(path).get("target_parameters"))


def _read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's configuration; empty where there is none, which NOLA's reader refuses."""
    if not os.path.lexists(folder / CONFIG_NAME) and (folder / _DIFFUSERS_NAME).is_file():
        raise AdapterError(
            f"holds {_DIFFUSERS_NAME}, a LoRA in the layout of diffusers, but no "
            f"{CONFIG_NAME}; {_CONVERT}",
            file=folder,
        )
    return read_config(folder)


def _unknown(method: object, file: Path) -> AdapterError:
    from nola_edge.adapters.methods import known_methods

    known = known_methods()
    *others, last = known
    if method is None:
        found, advice = "is missing", "save the adapter again with PEFT, or add the field"
    else:
        found, advice = f"is {printable(repr(method))}", _advice(method, known)
    return AdapterError(
        f"{found}, but only adapters of {', '.join(others)} and {last} are merged here; {advice}",
        file=file,
        field="peft_type",
        value=method,
    )


def _advice(method: object, known: Collection[str]) -> str:
    if method in _NO_WEIGHTS:
        return "it changes no weights, so there is nothing to merge; load it with PEFT"
    from difflib import get_close_matches

    # Not so far that LOHA, another method, would be taken for LORA.
    near = get_close_matches(str(method).upper(), known, n=1, cutoff=0.85)
    if near:
        return f"did you mean {near[0]!r}?"
    return "merge it with PEFT (merge_and_unload, then save_pretrained)"


def _load_file(path: Path) -> Adapter:
    try:
        return Adapter.load(path)
    except AdapterError:
        _refuse_other_layouts(path)
        raise


def _refuse_other_layouts(path: Path) -> None:
    """Refuse a single file that is a LoRA in the layout of another program, by name."""
    try:
        with SafetensorsFile.open(path) as file:
            names = list(file.tensors)
    except FormatError:
        return  # said by who reads it
    for name in names:
        if any(part in name for part in _KOHYA_PARTS):
            layout = "kohya's layout"
        elif ".lora_A." in name or ".lora_B." in name or ".lora.down." in name:
            layout = "the layout of diffusers, or PEFT's without its folder"
        else:
            continue
        raise AdapterError(
            f"belongs to a LoRA in {layout}, without the configuration that says how it is scaled; "
            f"give PEFT's folder with {CONFIG_NAME}. For an image model: {_CONVERT}",
            file=path,
            field=name,
        )
