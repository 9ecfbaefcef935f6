"""``NolaLinear``: a frozen linear layer with a NOLA adapter, for your own training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from nola_edge.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from nola_edge.torch.factors import FactorCache, Factors, fresh_coefficients, trained_alpha
from nola_edge.torch.functional import nola_delta
from nola_edge.torch.merge import merge_factors_
from nola_edge.torch.quantize import fake_quantize
from nola_edge.torch.sharding import check_layout, computed_shard, whole_tensor

if TYPE_CHECKING:
    from nola_edge.ops import Basis


def is_conv1d(layer: nn.Module) -> bool:
    """Tell whether a layer is GPT-2's Conv1D, which stores its weight as (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


class NolaLinear(nn.Module):
    r"""A linear layer plus ``s * B A``; only the coefficients of A and B are trained.

    The base layer's parameters are frozen. The forward pass regenerates A and B, r rows and r
    columns; neither a basis matrix nor ``B A`` is materialised.

    Parameters
    ----------
    base_layer : nn.Linear, or transformers' Conv1D
        Kept unchanged, and called.
    module : str
        The name of the layer in its model, from which the streams follow. It must be the name
        under which the adapter is shipped.
    r : int
        Rank.
    num_basis_a, num_basis_b : int
        Trainable coefficients of A and of B (k and l).
    seed : int
        0 .. 2**63 - 1.
    lora_alpha : float, optional
        s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`, times `beta_unit`.
        Default: r, so that s = `beta_unit`.
    basis : {"rademacher", "uniform"}
    use_rslora : bool
    beta_unit : float
        What beta is counted in; :func:`nola_edge.torch.unit_of_beta` gives the one that lets it
        take LoRA's learning rates. The same for all layers of an adapter.
    dropout : float
        On the adapter's input.
    start : {"unit", "unit-frozen", "random", "aligned"}
        See :func:`nola_edge.torch.fresh_coefficients`.
    coefficient_bits : {3, 4, 8}, optional
        Train with coefficients rounded to this many bits, all but the first of alpha.

    Attributes
    ----------
    alpha : (k,) float32 Parameter
    beta : (l,) float32 Parameter

    Raises
    ------
    TypeError
        If it is another kind of layer.
    ValueError
        If a number is out of range.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        module: str,
        *,
        r: int,
        num_basis_a: int,
        num_basis_b: int,
        seed: int,
        lora_alpha: float | None = None,
        basis: Basis = "rademacher",
        use_rslora: bool = False,
        beta_unit: float = 1.0,
        dropout: float = 0.0,
        start: str = "unit",
        coefficient_bits: int | None = None,
    ) -> None:
        super().__init__()
        from nola_edge.adapters.nola_config import AdapterConfig

        self.transposed = is_conv1d(base_layer)
        if not (isinstance(base_layer, nn.Linear) or self.transposed):
            raise ArgumentTypeError(
                f"{type(base_layer).__name__} is not Linear or Conv1D", field="base_layer"
            )
        self.config = AdapterConfig(
            r=r,
            num_basis_a=num_basis_a,
            num_basis_b=num_basis_b,
            seed=seed,
            lora_alpha=float(r if lora_alpha is None else lora_alpha),
            basis=basis,
            use_rslora=use_rslora,
            beta_unit=beta_unit,
            fan_in_fan_out=self.transposed,
            coefficient_bits=coefficient_bits,
            exact_first_alpha=coefficient_bits is not None,
        )
        self.base_layer = base_layer.requires_grad_(False)
        weight: torch.Tensor = base_layer.weight  # type: ignore[assignment]
        out_features, in_features = reversed(weight.shape) if self.transposed else weight.shape
        self.factors = Factors(module, r, in_features, out_features, seed, basis)
        self.start = start
        alpha, beta = fresh_coefficients(num_basis_a, num_basis_b, in_features, start)
        self.alpha = nn.Parameter(alpha.to(weight.device))
        self.beta = nn.Parameter(beta.to(weight.device))
        self.dropout = nn.Dropout(dropout)
        self._cache = FactorCache()
        self._unmerged: torch.Tensor | None = None

    @property
    def module(self) -> str:
        """Return the name from which the streams follow."""
        return self.factors.module

    @property
    def scaling(self) -> float:
        """Return s."""
        return self.config.scaling

    @property
    def merged(self) -> bool:
        """Whether the adapter is currently merged into the base weight."""
        return self._unmerged is not None

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"NolaLinear {self.module!r} has no weight to be used without calling the layer: "
                "its adapter would have no effect there. Leave the layer as it is, or merge()."
            )
        return super().__getattr__(name)

    def coefficients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha and beta as the forward pass uses them, rounded if they are quantised."""
        bits, exact_first = self.config.coefficient_bits, self.config.exact_first_alpha
        alpha = trained_alpha(self.alpha, self.start)
        return fake_quantize(alpha, bits, exact_first=exact_first), fake_quantize(self.beta, bits)

    def factor_requests(self) -> list[Any]:
        """Return which factors the next forward pass needs; see :func:`expand_together`."""
        if self.merged or hasattr(self.base_layer.weight, "device_mesh"):
            return []
        if self.config.coefficient_bits is not None or self.start == "unit-frozen":
            return []  # the forward pass makes its coefficients each time
        return [(self._cache, self.factors, self.alpha, self.beta)]

    def start_requests(self) -> list[Any]:
        """Return whose start :func:`align_start` may choose."""
        return [] if self.merged else [(self.factors, self.alpha, self.beta, self)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., in); the result is (..., out), of the base layer's dtype."""
        result: torch.Tensor = self.base_layer(x)
        if self.merged:
            return result
        weight = cast("torch.Tensor", self.base_layer.weight)
        shard = computed_shard(weight, transposed=self.transposed)
        check_layout(shard, x, result)
        a, b = self._cache.get(self.factors.on(shard), *self.coefficients(), x.dtype)
        delta = nola_delta(self.dropout(shard.share_input(x)), a, b, self.scaling, shard)
        return result + delta.to(result.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the base weight, in fp32 and rounded once, and keep the old weight.

        Raises
        ------
        NotFiniteError
            If a coefficient or a merged weight is infinite or NaN; the weight is then as before.
        """
        if self.merged:
            return
        weight = cast("torch.Tensor", self.base_layer.weight).data
        unmerged = weight.clone()
        try:
            merge_factors_(
                weight,
                [(self.factors, *self.coefficients(), self.scaling)],
                transposed=self.transposed,
            )
        except NotFiniteError:
            weight.copy_(unmerged)
            raise
        self._unmerged = unmerged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight exactly: it was kept, not recomputed."""
        if self._unmerged is not None:
            cast("torch.Tensor", self.base_layer.weight).data.copy_(self._unmerged)
            self._unmerged = None

    def extra_repr(self) -> str:
        """Describe the adapter."""
        c = self.config
        scaling = f"{c.lora_alpha:g} / " + (f"sqrt({c.r})" if c.use_rslora else f"{c.r}")
        if c.beta_unit != 1:
            scaling += f" * {c.beta_unit:g}"
        text = (
            f"module={self.module!r}, r={c.r}, num_basis_a={c.num_basis_a}, "
            f"num_basis_b={c.num_basis_b}, basis={c.basis}, seed={c.seed}, scaling={scaling}"
        )
        if c.coefficient_bits is not None:
            text += f", coefficient_bits={c.coefficient_bits}"
        return text + (", merged" if self.merged else "")


def to_adapter(model: nn.Module) -> Any:
    """Collect the :class:`NolaLinear` layers of a model into an adapter that can be saved.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    nola_edge.Adapter

    Raises
    ------
    ValueError
        If there is no such layer, two have the same name, or they differ in rank, seed or the like.
    NotFiniteError
        If training left a coefficient infinite or NaN.
    """
    import dataclasses

    from nola_edge.adapters.fingerprints import modules_fingerprint, shapes_fingerprint
    from nola_edge.adapters.nola import Adapter
    from nola_edge.adapters.nola_files import Coefficients

    layers = [module for module in model.modules() if isinstance(module, NolaLinear)]
    if not layers:
        raise ArgumentError("has no NolaLinear layer", field="model")
    config = layers[0].config
    modules: dict[str, Coefficients] = {}
    for layer in layers:
        if layer.config != config:
            raise ArgumentError(
                f"{layer.module} is configured differently from {layers[0].module}", field="model"
            )
        if layer.module in modules:
            raise ArgumentError(f"two layers are named {layer.module}", field="model")
        alpha, beta = (whole_tensor(c).float().cpu() for c in layer.coefficients())
        if not (alpha.isfinite().all() and beta.isfinite().all()):
            raise NotFiniteError("has coefficients that are not finite", field=layer.module)
        modules[layer.module] = Coefficients(alpha.numpy(), beta.numpy())
    shapes = {
        layer.module: (layer.factors.out_features, layer.factors.in_features) for layer in layers
    }
    recorded = dataclasses.replace(
        config,
        modules_fingerprint=modules_fingerprint(modules),
        shapes_fingerprint=shapes_fingerprint(shapes),
        bookkeeping={"target_modules": sorted(modules)},
    )
    return Adapter(recorded, modules)
