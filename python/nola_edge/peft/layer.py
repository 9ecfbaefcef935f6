"""The tuner's layer: a linear layer of any kind that PEFT can wrap, with NOLA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import (
    _get_in_out_features,
)
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn

from nola_edge.peft.bypassed import keep_from_fast_path, note_call, note_read
from nola_edge.peft.combined import Part
from nola_edge.peft.config import NolaConfig
from nola_edge.peft.merging import MergingLayer
from nola_edge.torch.addends import NolaAddend
from nola_edge.torch.factors import FactorCache, Factors, fresh_coefficients, trained_alpha
from nola_edge.torch.functional import nola_delta
from nola_edge.torch.linear import is_conv1d
from nola_edge.torch.quantize import fake_quantize
from nola_edge.torch.sharding import Shard, check_layout, computed_shard, whole_tensor


class NolaLinearLayer(MergingLayer):
    """A base layer and the coefficients of each adapter on it.

    PEFT's "all-linear" finds an adapted layer again by "Linear" in the name of its class.

    Nothing is shared with other layers and nothing but coefficients is saved.

    Parameters
    ----------
    base_layer : nn.Module
        ``nn.Linear``, transformers' ``Conv1D``, or a quantised linear layer that PEFT supports.
    get_apply_tensor_subclass : callable, optional
        For torchao's layers; PEFT gives it.
    """

    adapter_layer_names = ("nola_alpha", "nola_beta")
    other_param_names = (
        "nola_configs",
        "nola_scaling",
        "nola_factors",
        "nola_dropout",
        "nola_parts",
    )

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.nola_alpha = nn.ParameterDict({})
        self.nola_beta = nn.ParameterDict({})
        self.nola_dropout = nn.ModuleDict({})
        self.nola_configs: dict[str, NolaConfig] = {}
        self.nola_scaling: dict[str, float] = {}
        self.nola_factors: dict[str, Factors] = {}
        self.nola_parts: dict[str, list[Part]] = {}  # of combined adapters
        self._caches: dict[str, list[FactorCache]] = {}  # one for each addend
        self._disable_adapters = False
        #: Inside torch's encoder layer, which in evaluation uses weights without calling layers.
        self.is_in_encoder_layer = False
        self.is_known_bypassed = False  # warned of

        base = self.get_base_layer()
        self.transposed = is_conv1d(base)
        self.in_features, self.out_features = _features(base, self.transposed)

    @property
    def weight(self) -> torch.Tensor:
        """Return the base layer's weight, for callers that read it instead of calling the layer."""
        note_read(self)
        if self.disable_adapters and self.merged:
            self.unmerge()  # as forward does, which may not be called
        weight = super().weight
        if self.is_in_encoder_layer and not (self.merged or self.disable_adapters):
            return keep_from_fast_path(weight)
        return weight

    def update_layer(
        self, adapter_name: str, module: str, config: NolaConfig, inference_mode: bool = False
    ) -> None:
        """Add an adapter.

        Parameters
        ----------
        adapter_name : str
        module : str
            The layer's name in the base model, without wrappers.
        config : NolaConfig
        inference_mode : bool
            Do not train it.
        """
        self.nola_configs[adapter_name] = config
        self.nola_factors[adapter_name] = Factors(
            config.stream_module(module),
            config.r,
            self.in_features,
            self.out_features,
            config.seed,
            config.basis,  # type: ignore[arg-type]
        )
        self.nola_scaling[adapter_name] = config.scaling
        self._caches[adapter_name] = [FactorCache()]
        self.nola_dropout[adapter_name] = (
            nn.Dropout(config.nola_dropout) if config.nola_dropout > 0 else nn.Identity()
        )
        counts = (config.num_basis_a, config.num_basis_b)
        alpha, beta = fresh_coefficients(*counts, self.in_features, config.start)
        if not config.init_weights:
            alpha, beta = torch.randn(counts[0]), torch.randn(counts[1])
        self.nola_alpha[adapter_name] = nn.Parameter(alpha)
        self.nola_beta[adapter_name] = nn.Parameter(beta)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def combine(
        self, adapter_name: str, shares: Sequence[tuple[str, float]], config: NolaConfig
    ) -> None:
        """Add an adapter that is the weighted sum of those, among some, that are on this layer.

        It keeps copies of their coefficients, one after the other, as the forward pass uses them.
        """
        addends = [
            (factors, alpha.detach(), beta.detach(), weight * scaling)
            for name, weight in shares
            if name in self.nola_factors
            for factors, alpha, beta, scaling in self.addends(name)
        ]
        if not addends:
            return
        self.nola_parts[adapter_name] = [Part(f, len(a), len(b), s) for f, a, b, s in addends]
        self.nola_configs[adapter_name] = config
        self.nola_factors[adapter_name] = addends[0][0]
        self.nola_scaling[adapter_name] = 1.0
        self.nola_dropout[adapter_name] = nn.Identity()
        self.nola_alpha[adapter_name] = nn.Parameter(torch.cat([a for _, a, _, _ in addends]))
        self.nola_beta[adapter_name] = nn.Parameter(torch.cat([b for _, _, b, _ in addends]))
        self._caches[adapter_name] = [FactorCache() for _ in addends]
        self.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; a combined one is never trained."""
        super().set_adapter(adapter_names, inference_mode)
        self._freeze_combined()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train adapters, or do not; a combined one is never trained."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze_combined()

    def _freeze_combined(self) -> None:
        for name in self.nola_parts:
            self.nola_alpha[name].requires_grad_(False)
            self.nola_beta[name].requires_grad_(False)

    def addends(self, adapter: str) -> list[NolaAddend]:
        """Return what an adapter adds to the weight; a combined one adds a addend for each part."""
        parts = self.nola_parts.get(adapter)
        if parts is None:
            scaling = self.nola_scaling[adapter]
            return [(self.nola_factors[adapter], *self.coefficients(adapter), scaling)]
        alphas = self.nola_alpha[adapter].split([part.num_basis_a for part in parts])
        betas = self.nola_beta[adapter].split([part.num_basis_b for part in parts])
        return [
            (part.factors, alpha, beta, part.scaling)
            for part, alpha, beta in zip(parts, alphas, betas, strict=True)
        ]

    def coefficients(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha and beta as the forward pass uses them, rounded if they are quantised."""
        config = self.nola_configs[adapter]
        alpha = trained_alpha(self.nola_alpha[adapter], config.start)
        beta = self.nola_beta[adapter]
        bits, exact_first = config.coefficient_bits, bool(config.exact_first_alpha)
        return fake_quantize(alpha, bits, exact_first=exact_first), fake_quantize(beta, bits)

    def is_offloaded(self, adapter: str) -> bool:
        """Tell whether the base's weight or an adapter's coefficients are not in memory."""
        weight = cast(torch.Tensor, self.get_base_layer().weight)
        return any(values.is_meta for values in (weight, self.nola_alpha[adapter]))

    def is_finite(self, adapter: str) -> bool:
        """Tell whether no coefficient of an adapter is infinite or NaN."""
        pair = (self.nola_alpha[adapter], self.nola_beta[adapter])
        return all(bool(whole_tensor(values).isfinite().all()) for values in pair)

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Apply the base layer and every active adapter, or the one that each sample names."""
        note_call(self)
        if adapter_names is not None:
            self._check_mixed_batch(x, adapter_names)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        shard = computed_shard(
            cast(torch.Tensor, self.get_base_layer().weight), transposed=self.transposed
        )
        check_layout(shard, x, result)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._mixed_batch(x, result, adapter_names, shard)
        dtype = result.dtype
        for adapter in self.active_adapters:
            if adapter in self.nola_alpha:
                result = result + self._delta(adapter, x, shard)
        return result.to(dtype)

    def _check_mixed_batch(self, x: torch.Tensor, names: Sequence[str]) -> None:
        if len(x) != len(names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )

    def _mixed_batch(
        self, x: torch.Tensor, result: torch.Tensor, names: Sequence[str], shard: Shard
    ) -> torch.Tensor:
        """Add to each sample's result what the adapter gives that it names."""
        for adapter in sorted(set(names) & set(self.nola_alpha)):
            samples = [i for i, name in enumerate(names) if name == adapter]
            rows = torch.tensor(samples, device=x.device)
            changed = result[rows] + self._delta(adapter, x[rows], shard)
            result = result.index_copy(0, rows, changed.to(result.dtype))
        return result

    def _delta(self, adapter: str, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        # As in PEFT's LoRA: computed in the dtype of the adapter's parameters.
        dtype = self.nola_alpha[adapter].dtype
        x = self._cast_input_dtype(x, dtype)
        x = self.nola_dropout[adapter](shard.share_input(x))
        deltas = []
        for cache, addend in zip(self._caches[adapter], self.addends(adapter), strict=True):
            factors, alpha, beta, scaling = addend
            a, b = cache.get(factors.on(shard), alpha, beta, dtype)
            deltas.append(nola_delta(x, a, b, scaling, shard))
        return sum(deltas[1:], start=deltas[0])

    def factor_requests(self) -> list[Any]:
        """Say which factors the next forward pass wants; see ``expand_together``."""
        is_split = hasattr(self.get_base_layer().weight, "device_mesh")
        if self.disable_adapters or self.merged or is_split:
            return []
        return [
            (
                self._caches[name][0],
                self.nola_factors[name],
                self.nola_alpha[name],
                self.nola_beta[name],
            )
            for name in self.active_adapters
            if name in self.nola_alpha and self._uses_parameters(name)
        ]

    def start_requests(self) -> list[Any]:
        """Say whose start may be chosen; see ``align_start``."""
        if self.disable_adapters or self.merged:
            return []
        return [
            (
                self.nola_factors[name],
                self.nola_alpha[name],
                self.nola_beta[name],
                self.nola_configs[name],
            )
            for name in self.active_adapters
            if name in self.nola_alpha and name not in self.nola_parts
        ]

    def _uses_parameters(self, adapter: str) -> bool:
        """Tell whether the layer uses the parameters themselves, not what is made of them."""
        config = self.nola_configs[adapter]
        if adapter in self.nola_parts:
            return False
        return config.coefficient_bits is None and config.start != "unit-frozen"

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return ``s B A`` of an adapter, in the layout and dtype of the base weight.

        Materialised for those who ask; neither forward nor merge does it.
        """
        with torch.no_grad():
            deltas = [f.b(beta) @ f.a(alpha) * s for f, alpha, beta, s in self.addends(adapter)]
            delta = sum(deltas[1:], start=deltas[0])
        return (delta.T if self.transposed else delta).to(self.nola_alpha[adapter].dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        self._caches.pop(adapter_name, None)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Say that the adapter is additive; ``nola-edge export lora`` converts it exactly."""
        return True

    def extra_repr(self) -> str:
        """Describe the adapters."""
        described = [
            f"{name}: r={c.r}, k={c.num_basis_a}, l={c.num_basis_b}, {c.basis}, seed={c.seed}"
            for name, c in self.nola_configs.items()
        ]
        quantized = quantization_extra_repr(self)
        return "; ".join([*described, *([quantized] if quantized else [])])


def _features(base: nn.Module, transposed: bool) -> tuple[int, int]:
    """Return (in_features, out_features) of a base layer, the whole of it where it is split."""
    weight: Any = getattr(base, "weight", None)
    if hasattr(weight, "device_mesh"):
        rows, cols = weight.shape
        return (rows, cols) if transposed else (cols, rows)
    sizes = _get_in_out_features(base)
    if sizes[0] is None or sizes[1] is None:
        raise TypeError(f"Unsupported layer type {type(base)}")
    return sizes[0], sizes[1]
