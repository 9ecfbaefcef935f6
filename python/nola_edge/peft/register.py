"""Register the method with PEFT, and step in where PEFT does not ask a method.

It asks none before it loads coefficients into an adapter that is there, nor what to say in the card
of a model; and transformers, which loads adapters by itself too, asks nobody how a file holds
parameters.
"""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from transformers.integrations.peft import PeftAdapterMixin

from nola_edge.peft import card
from nola_edge.peft.combined import refuse_saving, without_combined
from nola_edge.peft.config import NolaConfig
from nola_edge.peft.direct import with_parameters
from nola_edge.peft.method import peft_type
from nola_edge.peft.model import NolaModel
from nola_edge.peft.publishing import publish


def register() -> None:
    """Register the tuner with PEFT; again does nothing."""
    if peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="nola", config_cls=NolaConfig, model_cls=NolaModel)
        PeftModel.load_adapter = _checked(PeftModel.load_adapter)  # type: ignore[method-assign]
        PeftModel.save_pretrained = _with_cards(  # type: ignore[method-assign]
            PeftModel.save_pretrained
        )
        PeftModel.push_to_hub = _publishing(PeftModel.push_to_hub)  # type: ignore[method-assign]
        PeftAdapterMixin.load_adapter = with_parameters(  # type: ignore[method-assign]
            PeftAdapterMixin.load_adapter
        )


def _checked(load_adapter: Any) -> Any:
    """Make ``PeftModel.load_adapter`` compare a file's configuration with the adapter it replaces.

    Loaded under the name of an adapter that is there, coefficients alone are taken from the file,
    by PEFT and by the Trainer that resumes. With another seed they would mean another matrix.
    """

    @functools.wraps(load_adapter)
    def checked(
        self: PeftModel, model_id: str | os.PathLike[str], adapter_name: str, *args: Any, **kw: Any
    ) -> Any:
        present = self.peft_config.get(adapter_name)
        if isinstance(present, NolaConfig) and os.path.isdir(model_id):
            present.check_same_basis(NolaConfig.from_pretrained(os.fspath(model_id)), adapter_name)
        return load_adapter(self, model_id, adapter_name, *args, **kw)

    return checked


def _publishing(push_to_hub: Any) -> Any:
    """Make ``PeftModel.push_to_hub`` keep the card of NOLA adapters."""

    @functools.wraps(push_to_hub)
    def pushed(self: PeftModel, *args: Any, **kw: Any) -> Any:
        nola = all(isinstance(config, NolaConfig) for config in self.peft_config.values())
        return (publish if nola else push_to_hub)(self, *args, **kw)

    return pushed


def _with_cards(save_pretrained: Any) -> Any:
    """Make ``PeftModel.save_pretrained`` write a card for each NOLA adapter."""
    signature = inspect.signature(save_pretrained)

    @functools.wraps(save_pretrained)
    def saved(self: PeftModel, *args: Any, **kw: Any) -> None:
        given = signature.bind(self, *args, **kw)
        given.apply_defaults()
        folder = Path(given.arguments["save_directory"])
        names = given.arguments["selected_adapters"]
        names = without_combined(self.peft_config) if names is None else names
        for name in names:
            refuse_saving(self.peft_config.get(name), name)
        given.arguments["selected_adapters"] = names
        nola = all(isinstance(self.peft_config.get(name), NolaConfig) for name in names)
        if not (nola and given.arguments["is_main_process"]) or folder.is_file():
            return save_pretrained(*given.args, **given.kwargs)
        card.save_with_cards(
            self, folder, names, lambda: save_pretrained(*given.args, **given.kwargs)
        )

    return saved
