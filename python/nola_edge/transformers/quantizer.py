"""The plug-in that transformers calls for each parameter while it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from nola_edge.adapters.belongs import check_fingerprint
from nola_edge.adapters.fingerprints import checkpoint_fingerprint
from nola_edge.errors import MismatchError, NolaEdgeError
from nola_edge.models.loader import MergesFromFiles
from nola_edge.models.plan import PlannedMerge, check_resident, plan_merges
from nola_edge.torch.merge import merge_factors_
from nola_edge.transformers.config import METHOD, NolaMergeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


_UNCHECKED = "NolaMergeConfig(…, check_base=False)"


class _Merge(ConversionOps):
    """Merge into the parameters that pass by.

    Transformers logs what an operation raises and goes on; so an error is kept, and raised once
    loading is over.
    """

    def __init__(self, quantizer: NolaMergeQuantizer) -> None:
        self.quantizer = quantizer

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str] | None = None,
        target_patterns: list[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return parameters under the names that they came with, merged where they are adapted.

        One stored tensor may have become several parameters, which all come here if the first of
        them is adapted; only the keys tell which is which.
        """
        return {name: self._merged(name, value) for name, value in input_dict.items()}

    def _merged(self, name: str, value: Any) -> Any:
        if name not in self.quantizer.planned:
            return value
        tensor = value[0] if isinstance(value, list) else value
        try:
            return self.quantizer.merge(name, tensor)
        except NolaEdgeError as error:
            self.quantizer.errors.append(error)
            return tensor


@register_quantizer(METHOD)
class NolaMergeQuantizer(HfQuantizer):
    """Merges adapters into a model's parameters while they are loaded; leaves no trace in it."""

    quantization_config: NolaMergeConfig

    def __init__(self, quantization_config: NolaMergeConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.planned: dict[str, PlannedMerge] = {}
        self.merged: dict[str, tuple[torch.device, int]] = {}  # where each has been left
        self.name = Path()
        self.dtype: torch.dtype | None = None
        self.errors: list[NolaEdgeError] = []
        self.from_files = MergesFromFiles(())
        self.deferred = False

    def preprocess_model(self, model: PreTrainedModel, dtype: Any = None, **kwargs: Any) -> None:
        """Match adapters to the model, still without weights; refuse what does not fit.

        Raises
        ------
        NolaEdgeError
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.name, self.dtype = Path(f"<{type(model).__name__}>"), dtype
        self.planned = plan_merges(parameters, self.quantization_config.adapters, self.name)
        self._check_tied(model)
        files = kwargs.get("checkpoint_files") or ()
        if self.quantization_config.check_base:
            self._check_base(files)
        self.from_files = MergesFromFiles(files)
        places = kwargs.get("device_map") or {"": "cpu"}
        if isinstance(places, dict):
            self._check_places(places)
            # Parts that are moved while loading must be complete by then.
            self.deferred = all(str(place) == "cpu" for place in places.values())

    def _check_tied(self, model: PreTrainedModel) -> None:
        """Refuse adapted weights that transformers will make the same tensor as another."""
        tied = list(model.all_tied_weights_keys.items())
        for one, other in [*tied, *((b, a) for a, b in tied)]:
            if one in self.planned:
                raise MismatchError(
                    f"is the same tensor as {other}, which the adapter was not trained for; save "
                    f"the base with tie_word_embeddings=False and {one} as a tensor of its own, "
                    "and load that",
                    file=self.name,
                    field=one,
                )

    def _check_places(self, places: dict[str, Any]) -> None:
        """Refuse adapted weights on disk: they would be read from the base's files, unmerged."""
        for name in self.planned:
            parts = name.split(".")
            for count in range(len(parts), -1, -1):
                place = places.get(".".join(parts[:count]))
                if place is not None:
                    break
            if place == "disk":
                raise MismatchError(
                    "is adapted and would be offloaded to disk, where transformers keeps the "
                    "base's own files; write a merged checkpoint first: nola-edge merge",
                    file=self.quantization_config.adapters[0][0].path,
                    field=name,
                )

    def _check_base(self, files: Sequence[str]) -> None:
        """Refuse a base in safetensors files that is not the one an adapter recorded."""
        if not files or not all(str(file).endswith(".safetensors") for file in files):
            return
        path = Path(files[0])
        base = path if len(files) == 1 else path.parent
        for adapter, _ in self.quantization_config.adapters:
            if adapter.base_fingerprint is not None:
                try:
                    found = checkpoint_fingerprint(base, adapter.modules)
                except NolaEdgeError as error:
                    raise MismatchError(
                        f"cannot be compared with the base that the adapter recorded: {error}; to "
                        f"merge all the same, {_UNCHECKED}",
                        file=base,
                    ) from None
                check_fingerprint(adapter, found, base, _UNCHECKED)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Tell whether a parameter is merged into as it passes by.

        Not one of another dtype than the model's, which transformers would round twice, nor one of
        which this process gets a part: what is left over is merged once the model is complete.
        """
        if param_name not in self.planned:
            return False
        parameter = model.get_parameter(param_name)
        return parameter.dtype == self.dtype and not hasattr(parameter, "device_mesh")

    def get_quantize_ops(self) -> _Merge:
        """Return the operation for such a parameter."""
        return _Merge(self)

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a parameter with its adapters merged.

        One that the loader has mapped from a file is merged in :meth:`postprocess_model`, with all
        others, where nothing needs it before.

        Raises
        ------
        NolaEdgeError
        """
        planned = self.planned[name]
        if tuple(tensor.shape) != planned.shape:
            raise MismatchError(
                f"is {list(tensor.shape)} in the checkpoint and {list(planned.shape)} in the model",
                file=self.name,
                field=name,
            )
        merged = self.from_files.add(name, tensor, planned.stored)
        if merged is None:
            # The tensor may be somebody's own, given to from_pretrained.
            merged = tensor.clone(memory_format=torch.contiguous_format)
            merge_factors_(merged, planned.terms, transposed=planned.transposed)
        elif not self.deferred:
            self.from_files.run()
        self.merged[name] = (merged.device, merged.data_ptr())
        return merged

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Merge what is left, raise what went wrong; take the plug-in out of the model.

        Raises
        ------
        NolaEdgeError
            If a merged weight is not finite, or an adapted weight was not in the checkpoint.
        """
        try:
            if not self.errors:
                self._check_places(getattr(model, "hf_device_map", {}))
                self._merge_the_rest(model)
                self.from_files.run()
        except NolaEdgeError as error:
            self.errors.append(error)
        finally:
            self.from_files.close()
        if self.errors:
            raise self.errors[0]
        for owner, names in (
            (model, ("hf_quantizer", "quantization_method", "is_quantized")),
            (model.config, ("quantization_config",)),
        ):
            for name in names:
                owner.__dict__.pop(name, None)
        return model

    @torch.no_grad()
    def _merge_the_rest(self, model: PreTrainedModel) -> None:
        """Merge into adapted parameters that did not pass by; find each of the others in place."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in self.planned:
            parameter = parameters[name]
            if name in self.merged:
                self._check_still_there(name, parameter)
                continue
            check_resident(parameters, [name], self.name)
            # The mark of transformers on what it has read from a checkpoint.
            if not getattr(parameter, "_is_hf_initialized", False):
                raise MismatchError(
                    "is adapted, and the checkpoint has no weight for it",
                    file=self.name,
                    field=name,
                )
            merged = self.merge(name, parameter.data)
            owner, _, last = name.rpartition(".")
            # A new one: what a DTensor keeps is not replaced through its data.
            replaced = torch.nn.Parameter(merged, requires_grad=parameter.requires_grad)
            replaced.__dict__.update(parameter.__dict__)
            setattr(model.get_submodule(owner), last, replaced)

    def _check_still_there(self, name: str, parameter: torch.nn.Parameter) -> None:
        """Refuse a parameter that was replaced after it had been merged; offloading moves it."""
        place = (parameter.device, parameter.data_ptr())
        if not parameter.is_meta and self.merged[name] != place:
            raise MismatchError(
                "was loaded twice: the checkpoint has it under two names; remove one of them",
                file=self.name,
                field=name,
            )

    def is_serializable(self) -> bool:
        """Say that the model can be saved: its weights are plain."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that it can be trained."""
        return True
