"""Adapters that transformers loads itself: ``model.load_adapter("adapter")``, without a PEFT model.

It takes a file's tensors for parameters, in the data type of the base. Ours may be packed integers
or have the names of modules before a renaming, and coefficients are float32 beside any base.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from nola_edge.adapters.nola_files import ALPHA, BETA
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.peft.adapted import adapted_layers
from nola_edge.peft.config import NolaConfig
from nola_edge.peft.names import plain_name
from nola_edge.peft.state import from_stored

#: What says where a file is, of the arguments for the Hub that PEFT and transformers share.
_PLACE = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download")


def with_parameters(load_adapter: Any) -> Any:
    """Make transformers' ``load_adapter`` take a NOLA adapter's tensors as parameters.

    Adapters of other methods are loaded as before.
    """
    signature = inspect.signature(load_adapter)

    @functools.wraps(load_adapter)
    def loaded(self: Any, *args: Any, **kw: Any) -> Any:
        given = signature.bind(self, *args, **kw)
        name, place = _where(given.arguments)
        config = given.arguments.get("peft_config") or _config(name, place)
        if not isinstance(config, NolaConfig):
            return load_adapter(*given.args, **given.kwargs)
        tensors = given.arguments.get("adapter_state_dict")
        if tensors is None:
            tensors = _tensors(str(name), place)
        parameters = from_stored(tensors, config)
        given.arguments |= {"peft_config": config, "adapter_state_dict": parameters}
        info = load_adapter(*given.args, **given.kwargs)
        _restore_precision(self, given.arguments.get("adapter_name") or "default", parameters)
        return info

    return loaded


def _where(arguments: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the folder or the name on the Hub, and what else says which file is meant."""
    options = arguments.get("kwargs", {})
    settings = arguments.get("load_config")
    place = {
        **(getattr(settings, "download_kwargs", None) or {}),
        **options.get("download_kwargs", {}),
        **(arguments.get("adapter_kwargs") or {}),
    }
    if arguments.get("local_files_only"):
        place["local_files_only"] = True
    name = (
        arguments.get("peft_model_id")
        or options.get("pretrained_model_name_or_path")
        or getattr(settings, "pretrained_model_name_or_path", None)
    )
    return name, {key: place[key] for key in _PLACE if place.get(key)}


def _config(name: str | None, place: dict[str, Any]) -> PeftConfig | None:
    """Read a configuration; if there is none, transformers reports it better."""
    if name is None or find_adapter_config_file(name, **place) is None:
        return None
    return PeftConfig.from_pretrained(name, **place)


def _tensors(name: str, place: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read a file's tensors; PEFT finds them in the folder where transformers keeps the file."""
    path = cached_file(
        name, SAFETENSORS_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **place
    ) or cached_file(name, WEIGHTS_NAME, **place)
    return load_peft_weights(os.path.dirname(str(path)), device="cpu")


def _restore_precision(model: Any, adapter_name: str, parameters: dict[str, torch.Tensor]) -> None:
    """Take coefficients again that were rounded to the data type of the base."""
    for module, layer in adapted_layers(model, adapter_name).items():
        for part, held in ((ALPHA, layer.nola_alpha), (BETA, layer.nola_beta)):
            rounded = held[adapter_name]
            exact = parameters.get(f"{PREFIX}{plain_name(module)}{part}")
            if exact is None or rounded.is_meta or rounded.dtype == torch.float32:
                continue
            values = exact.to(rounded.device, torch.float32)
            held[adapter_name] = nn.Parameter(values, requires_grad=rounded.requires_grad)
