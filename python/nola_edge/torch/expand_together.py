"""Expand the factors of a whole model at once.

A layer expands its own factors when it needs them: two small launches forward and two backward for
each layer, which on a GPU cost more time to start than to run. :func:`expand_together` makes them
all in one launch at the beginning of a model's forward pass, and projects all gradients in one at
the end of the backward pass. The bits are the same.
"""

from __future__ import annotations

from operator import is_not
from typing import TYPE_CHECKING, Any, cast

import torch

from nola_edge.errors import ArgumentError
from nola_edge.torch import operators

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from nola_edge.torch.factors import FactorCache, Factors
    from nola_edge.torch.operators import Source

    #: Where a layer looks for its factors, what they are, alpha, beta.
    Request = tuple[FactorCache, Factors, torch.Tensor, torch.Tensor]


class _ExpandGroup(torch.autograd.Function):
    """Many expansions as one node: its backward pass waits for all gradients."""

    @staticmethod
    def forward(
        ctx: Any, sources: Sequence[Source], *coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.sources = sources
        ctx.kinds = [(len(c), c.dtype) for c in coefficients]
        ctx.set_materialize_grads(False)
        return tuple(operators.expand_group(coefficients, sources))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        used = [
            i for i, grad in enumerate(grads) if grad is not None and ctx.needs_input_grad[i + 1]
        ]
        results: list[torch.Tensor | None] = [None] * len(grads)
        if used:
            every = len(used) == len(grads)
            projected = operators.project_group(
                [grads[i] for i in used],  # type: ignore[misc]
                [ctx.kinds[i][0] for i in used],
                ctx.sources if every else [ctx.sources[i] for i in used],
            )
            for i, gradient in zip(used, projected, strict=True):
                results[i] = gradient.to(ctx.kinds[i][1])
        return (None, *results)


def expand_group(
    coefficients: Sequence[torch.Tensor], sources: Sequence[Source]
) -> list[torch.Tensor]:
    """Expand many matrices, in one launch for each device, seed and basis.

    Differentiable, once with one launch and again with one for each matrix.

    Parameters
    ----------
    coefficients : sequence of (k,) floating point
    sources : sequence of (seed, stream, basis, shape, rows, cols)
        As ``torch.ops.nola_edge.expand`` takes them: streams are signed. A sequence that is given
        again, the same object, spares the device another table of it.

    Returns
    -------
    list of float32 tensors, in order; they may share memory
    """
    if not all(map(operators.is_plain, coefficients)):
        return [operators.expand(c, s) for c, s in zip(coefficients, sources, strict=True)]
    groups: dict[Any, list[int]] = {}
    for i, (values, source) in enumerate(zip(coefficients, sources, strict=True)):
        groups.setdefault((values.device, source[0], source[2]), []).append(i)
    if len(groups) == 1:
        expanded: Any = _ExpandGroup.apply(sources, *coefficients)
        return list(expanded)
    results: dict[int, torch.Tensor] = {}
    for members in groups.values():
        parts = [coefficients[i] for i in members]
        matrices: Any = _ExpandGroup.apply([sources[i] for i in members], *parts)
        results.update(zip(members, matrices, strict=True))
    return [results[i] for i in range(len(coefficients))]


class _Together:
    """The hooks of a model; a copy of the model gets hooks of its own."""

    def __init__(self) -> None:
        self._layers: list[Any] | None = None
        self._offered: list[FactorCache] = []
        self._factors: list[Factors] = []
        self._sources: list[Source] = []

    def offer(self, model: nn.Module, *_: Any) -> None:
        """Expand all factors and hand them to the layers."""
        self.withdraw()
        if torch.compiler.is_compiling():
            return
        if self._layers is None:  # found once: walking a large model takes milliseconds
            self._layers = [m for m in model.modules() if hasattr(m, "factor_requests")]
        requests: list[Request] = [r for layer in self._layers for r in layer.factor_requests()]
        requests = [r for r in requests if not (r[2].is_inference() or r[3].is_inference())]
        if not requests:
            return
        coefficients = [c for _, _, alpha, beta in requests for c in (alpha, beta)]
        expanded = expand_group(coefficients, self._sources_of([f for _, f, *_ in requests]))
        for i, (cache, factors, alpha, beta) in enumerate(requests):
            cache.offer(factors, alpha, beta, expanded[2 * i], expanded[2 * i + 1])
            self._offered.append(cache)

    def _sources_of(self, factors: list[Factors]) -> list[Source]:
        """Return the same list for the same factors."""
        if len(factors) != len(self._factors) or any(map(is_not, factors, self._factors)):
            self._factors = factors
            self._sources = [source for f in factors for source in (f.a_source, f.b_source)]
        return self._sources

    def withdraw(self, *_: Any) -> None:
        """Take back what no layer needs any more: the coefficients may change from here on."""
        while self._offered:
            self._offered.pop().withdraw()

    def __reduce__(self) -> tuple[type[_Together], tuple[()]]:
        return _Together, ()


def expand_together(model: nn.Module) -> Callable[[], None]:
    """Make a model expand all its factors in one launch at the beginning of each forward pass.

    Worthwhile on a GPU, where a launch costs as much as a small expansion; useless on a CPU. All
    factors are then in memory at once, as in LoRA. Some layers still expand their own: those that a
    mesh splits, that torch compiles, whose coefficients are rounded or cut when used
    (``coefficient_bits``, ``unit-frozen``), and those that are added to the model afterwards.

    Parameters
    ----------
    model : nn.Module
        With :class:`NolaLinear` layers or those of the tuner. For a PEFT model the hooks are on its
        base model, so ``generate`` is covered too.

    Returns
    -------
    callable
        Call it to undo this.

    Raises
    ------
    ValueError
        If the model has no such layer.
    """
    inner: Any = model
    if hasattr(model, "get_base_model"):
        inner = cast("Any", model).get_base_model()
    if not any(hasattr(layer, "factor_requests") for layer in inner.modules()):
        raise ArgumentError(
            f"{type(model).__name__} has no layer with a NOLA adapter", field="model"
        )
    together = _Together()
    handles = [
        inner.register_forward_pre_hook(together.offer),
        # Also after an error: an offer must not outlive the coefficients that it was made of.
        inner.register_forward_hook(together.withdraw, always_call=True),
    ]

    def undo() -> None:
        together.withdraw()
        for handle in handles:
            handle.remove()

    return undo
