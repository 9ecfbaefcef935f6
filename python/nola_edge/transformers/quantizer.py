"""The plug-in that transformers calls for each parameter while it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from nola_edge.adapters.renames import Renames
from nola_edge.errors import MismatchError, NolaEdgeError
from nola_edge.models.loader import MergesFromFiles
from nola_edge.models.merge import as_matrix, merge_one_, replace_
from nola_edge.models.plan import ModelPlan, check_orientations, plan_merges, tensors_of
from nola_edge.models.resident import check_resident, check_whole_outputs
from nola_edge.transformers.checks import check_base, check_places, check_tied
from nola_edge.transformers.config import METHOD, NolaMergeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        if name not in self.quantizer.plan:
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
        self.plan = ModelPlan()
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
        self.name, self.dtype = Path(f"<{type(model).__name__}>"), dtype
        config, renames = self.quantization_config, Renames(self.quantization_config.rename)
        self.plan = plan_merges(tensors_of(model), config.adapters, self.name, renames)
        renames.check_used()
        check_orientations(model, self.plan, self.name)
        check_tied(self.plan, model.all_tied_weights_keys, self.name)
        files = kwargs.get("checkpoint_files") or ()
        if config.check_base:
            check_base(config.adapters, files)
        self.from_files = MergesFromFiles(files)
        places = kwargs.get("device_map") or {"": "cpu"}
        if isinstance(places, dict):
            self._check_places(places)
            # Parts that are moved while loading must be complete by then.
            self.deferred = all(str(place) == "cpu" for place in places.values())

    def _check_places(self, places: dict[str, Any]) -> None:
        check_places(self.plan, places, self.quantization_config.adapters[0][0].path)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Tell whether a parameter is merged into, or replaced, as it passes by.

        Not one of another dtype than the model's, which transformers would round twice, nor one of
        which this process gets a part: what is left over is merged once the model is complete.
        """
        if param_name not in self.plan:
            return False
        parameter = model.get_parameter_or_buffer(param_name)
        return parameter.dtype == self.dtype and not hasattr(parameter, "device_mesh")

    def get_quantize_ops(self) -> _Merge:
        """Return the operation for such a parameter."""
        return _Merge(self)

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return what takes a parameter's place: itself with its adapters merged, or theirs.

        One that the loader has mapped from a file is merged in :meth:`postprocess_model`, with all
        others, where nothing needs it before.

        Raises
        ------
        NolaEdgeError
        """
        planned = self.plan.merges.get(name)
        shape = self.plan.replaced[name].shape if planned is None else planned.shape
        found = tensor.shape if planned is None else as_matrix(tensor).shape
        if tuple(found) != shape:
            raise MismatchError(
                f"is {list(found)} in the checkpoint and {list(shape)} in the model",
                file=self.name,
                field=name,
            )
        merged = self._merged_from_file(name, tensor)
        if merged is None:
            # The tensor may be somebody's own, given to from_pretrained.
            merged = tensor.clone(memory_format=torch.contiguous_format)
            self._change_(name, merged)
        self.merged[name] = (merged.device, merged.data_ptr())
        return merged

    def _merged_from_file(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return what will hold a weight that is mapped from a file, merged; else None."""
        planned = self.plan.merges.get(name)
        if planned is None or not planned.terms:
            return None
        merged = self.from_files.add(name, tensor, planned.terms)
        if merged is not None and not self.deferred:
            self.from_files.run()
        return merged

    def _change_(self, name: str, tensor: torch.Tensor) -> None:
        """Merge into a tensor, or replace it, in place."""
        planned = self.plan.merges.get(name)
        if planned is None:
            replace_(tensor, self.plan.replaced[name])
            return
        matrix = as_matrix(tensor)
        check_whole_outputs(matrix, planned.needs, name, self.name)
        merge_one_(matrix, planned)

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
        """Change what did not pass by; find everything else in place."""
        tensors = tensors_of(model)
        for name in self.plan.names:
            tensor = tensors[name]
            if name in self.merged:
                self._check_still_there(name, tensor)
                continue
            check_resident(tensors, [name], self.name)
            # The mark of transformers on what it has read from a checkpoint.
            if name in self.plan.merges and not getattr(tensor, "_is_hf_initialized", False):
                raise MismatchError(
                    "is adapted, but the checkpoint has no weight for it",
                    file=self.name,
                    field=name,
                )
            changed = self.merge(name, tensor.data)
            owner, _, last = name.rpartition(".")
            # A new one: what a DTensor keeps is not replaced through its data.
            if isinstance(tensor, torch.nn.Parameter):
                changed = torch.nn.Parameter(changed, requires_grad=tensor.requires_grad)
            changed.__dict__.update(tensor.__dict__)
            setattr(model.get_submodule(owner), last, changed)

    def _check_still_there(self, name: str, tensor: torch.Tensor) -> None:
        """Refuse a parameter that was replaced after it had been merged; offloading moves it."""
        place = (tensor.device, tensor.data_ptr())
        if not tensor.is_meta and self.merged[name] != place:
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
