"""The tuner: puts NOLA layers into a model, and turns its state into an adapter file's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule
from peft.utils import (
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import nn

from nola_edge.adapters.nola_files import ALPHA, BETA, SCALE
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.peft.adapted import (
    adapted_layers,
    check_injected,
    count_in_unit,
    stream_shapes,
    take_out,
)
from nola_edge.peft.base import loaded_from, warn_of_other_base
from nola_edge.peft.bypassed import refuse_fused, warn_of_attention, warn_of_bypassed
from nola_edge.peft.combined import (
    check_combination,
    check_combination_type,
    combined_config,
    refuse_saving,
)
from nola_edge.peft.config import NolaConfig
from nola_edge.peft.layer import NolaLinearLayer
from nola_edge.peft.mixed_batch import mixed_batch
from nola_edge.peft.names import PlainNames, plain_name
from nola_edge.peft.rate import watch_rate
from nola_edge.peft.saved_parts import saved_parts
from nola_edge.peft.stacked import warn_of_stacked
from nola_edge.peft.state import from_stored, select_coefficients, to_stored
from nola_edge.torch.linear import is_conv1d


class NolaModel(BaseTuner):
    """A model whose target layers carry NOLA adapters.

    Made by :func:`peft.get_peft_model` with a :class:`NolaConfig`; see PEFT's ``LoraModel`` for
    what it can do.
    """

    prefix: str = "nola_"
    tuner_layer_cls = NolaLinearLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        name = self._plain_name(current_key)
        refuse_fused(parent, target_name, name)
        if isinstance(target, NolaLinearLayer):
            target.update_layer(adapter_name, name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        kwargs = get_quantization_kwargs(self)
        if not _is_supported(base, kwargs):
            raise TypeError(
                f"Target module {target} is not supported. NOLA adapts `torch.nn.Linear` (plain or "
                "quantized) and `transformers.pytorch_utils.Conv1D`."
            )
        layer = NolaLinearLayer(target, **kwargs)
        layer.is_in_encoder_layer = isinstance(parent, nn.TransformerEncoderLayer)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    @staticmethod
    def _check_target_module_exists(config: Any, key: str) -> Any:
        """Match a module by its name without wrappers; "all-linear" lists names with them."""
        found = BaseTuner._check_target_module_exists(config, plain_name(key))
        if found or isinstance(found, _ExcludedModule) or plain_name(key) == key:
            return found
        return BaseTuner._check_target_module_exists(config, key)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add an adapter to a model and check that it belongs there.

        Raises
        ------
        ValueError
            If the modules are not those that the adapter's streams were made for, Linear and
            Conv1D layers would share an adapter, or a weight is used without calling its layer or
            by another module too. The model is then as before.
        """
        self._plain_name = PlainNames(model)
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        config = cast(NolaConfig, self.peft_config[adapter_name])
        targets = config.target_modules  # as they were given; PEFT puts names in their place
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._forget_wrappers(model, config)
            check_injected(model, adapter_name, config)
            count_in_unit(model, adapter_name, config)
        except Exception:
            take_out(model, adapter_name)
            for parameter, is_trained in trained:
                parameter.requires_grad_(is_trained)
            raise
        self._warn_of_other_base(model, adapter_name)
        warn_of_attention(model, adapter_name)
        if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
            warn_of_stacked(model)
        watch_rate(adapted_layers(model, adapter_name).values())

    def _warn_of_other_base(self, model: nn.Module, adapter_name: str) -> None:
        """Compare the folder of the model's base with the one that the adapter records."""
        config = cast(NolaConfig, self.peft_config[adapter_name])
        modules = stream_shapes(adapted_layers(model, adapter_name), adapter_name)
        parts = config.adapter_config().tensors
        warn_of_other_base(model, adapter_name, config.base_fingerprint, modules, parts)

    def _forget_wrappers(self, model: nn.Module, config: Any) -> None:
        """Name the modules that "all-linear" stands for as a model without wrappers has them."""
        if isinstance(config.target_modules, set):
            here = {name for name, _ in model.named_modules()}
            config.target_modules = {
                self._plain_name(name) if name in here else name for name in config.target_modules
            }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; adapters for each sample are for the PEFT model around it to give."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "Pass `adapter_names` to the PEFT model, not to its `base_model`, which would run "
                "every sample with the active adapter."
            )
        return super().forward(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **call: Any) -> Iterator[None]:
        """Run a forward pass or a generation of PEFT's; it may name an adapter for each sample."""
        names = call.pop("adapter_names", None)
        with warn_of_bypassed(), nullcontext() if names is None else mixed_batch(self, names, call):
            yield

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        **options: Any,
    ) -> None:
        """Add an adapter that is the weighted sum of others, exactly: ranks are concatenated.

        It has copies of their coefficients, remains when they are deleted, and is merged with one
        rounding, with the same bits as ``nola-edge merge BASE a=0.7 b=0.3``. It is not trained and
        not saved.

        Parameters
        ----------
        adapters : list of str
        weights : list of float
            On the scalings of the adapters, of any sign.
        adapter_name : str
            Name of the new adapter, which :meth:`set_adapter` activates.
        combination_type : {"cat"}
        **options
            Options of the approximations that PEFT's LoRA offers (`density`, `svd_rank`, ...):
            refused.

        Raises
        ------
        ValueError
            If an adapter does not exist, or trains whole modules or biases; if a weight is not a
            number, or the name cannot be an adapter's; or for the approximations that PEFT's LoRA
            offers, and their options.
        """
        check_combination_type(combination_type, options)
        check_combination(self.peft_config, adapters, weights, adapter_name)
        config = combined_config(self.peft_config, adapters, weights)
        for layer in self.modules():
            if isinstance(layer, NolaLinearLayer):
                layer.combine(adapter_name, tuple(zip(adapters, weights, strict=True)), config)
        self.peft_config[adapter_name] = config

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge adapters into their base layers; nothing changes if coefficients are broken."""
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_mergeable(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        """Refuse what is not in memory, or broken, before the first layer is merged."""
        for layer in self.modules():
            if not isinstance(layer, NolaLinearLayer):
                continue
            for name in adapter_names or layer.active_adapters:
                if name not in layer.nola_factors:
                    continue
                if layer.is_offloaded(name):
                    raise ValueError(
                        f"The layer {layer.nola_factors[name].module!r} is offloaded, so it cannot "
                        "be merged into in memory. Load the model without offloading, or merge "
                        "into its files: `nola-edge merge`."
                    )
                if not layer.is_finite(name):
                    raise ValueError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be "
                        "broken: its training diverged, and the coefficients of "
                        f"{layer.nola_factors[name].module!r} are not finite."
                    )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Select an adapter's tensors, under the names and in the form that its file has."""
        refuse_saving(config, adapter_name)
        if _is_gathered_elsewhere(state_dict):
            return {}
        plain = PlainNames(model)
        state = {plain(name): values for name, values in state_dict.items()}
        layers = adapted_layers(model, adapter_name)
        names = [plain(name) for name in layers]
        selected = select_coefficients(names, state, config, adapter_name)
        selected |= cls._get_learnable_bias_state_dict(model, state, config)
        # PEFT looks for modules_to_save and embeddings in the same mapping next, by their names in
        # the model.
        for name, _ in model.named_parameters(remove_duplicate=False):
            if plain(name) in state:
                state_dict.setdefault(name, state[plain(name)])
        shapes, parts = stream_shapes(layers, adapter_name), saved_parts(model, adapter_name)
        config.remember_modules(shapes, parts, loaded_from(model))
        return to_stored(selected, config, adapter_name)

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], config: Any
    ) -> dict[str, torch.Tensor]:
        """Select the trained biases from a state without wrappers."""
        if config.bias != "nola_only":
            return super()._get_learnable_bias_state_dict(model, state_dict, config)
        plain = PlainNames(model)
        layers = (n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
        names = [f"{plain(name)}.base_layer.bias".lstrip(".") for name in layers]
        return {name: state_dict[name] for name in names if name in state_dict}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Turn a file's tensors into parameters of the model, wrapped or not."""
        plain = PlainNames(model)
        live: dict[str, str] = {}
        for name in model.state_dict():
            stored = plain(name)
            if stored.endswith((f"{ALPHA}.{adapter_name}", f"{BETA}.{adapter_name}")):
                stored = stored.removesuffix(f".{adapter_name}")
            live[stored] = name
            if not stored.startswith(PREFIX):  # layers that were injected without a PeftModel
                live[PREFIX + stored] = name
        loaded = from_stored(state_dict, config)
        return {live.get(plain_name(name), name): values for name, values in loaded.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        key = plain_name(key)
        for suffix in (ALPHA, BETA):
            # A quantised tensor's name ends in the name of its adapter, or in that and "_scale".
            ending = f"{suffix}.{adapter_name}"
            if key.endswith(ending + SCALE):
                return key.removesuffix(ending + SCALE) + suffix + SCALE
        return super()._remove_adapter_name_from_key(key, adapter_name)


def _is_gathered_elsewhere(state_dict: dict[str, torch.Tensor]) -> bool:
    """Tell whether another process, the first one, has the state that it will save.

    FSDP then hands nothing to the others, DeepSpeed's ZeRO-3 leaves them empty tensors.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:
        return False
    return not any(v.numel() for name, v in state_dict.items() if ALPHA in name or BETA in name)


def _is_supported(base: nn.Module, kwargs: dict[str, Any]) -> bool:
    if isinstance(base, nn.Linear) or is_conv1d(base):
        return True
    backend = resolve_quantization_backend(base, **kwargs)
    return backend is not None and backend.layer_type == "linear"
