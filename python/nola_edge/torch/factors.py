"""The two factors of one adapted layer: where they come from, their start, and their cache."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING

import torch

from nola_edge import _core
from nola_edge.adapters.start import unit_start
from nola_edge.errors import ArgumentError
from nola_edge.ops import Basis, stream_id

# cpu, cuda, host register kernels; host after those that have their own
from nola_edge.torch import operators
from nola_edge.torch.backends import cpu, cuda, through_host  # noqa: F401
from nola_edge.torch.operators import signed_stream
from nola_edge.torch.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_SEED = (1 << 63) - 1

#: Ways for alpha to start; see :func:`fresh_coefficients`.
STARTS = ("unit", "unit-frozen", "random", "aligned")


def checked_seed(seed: int) -> int:
    """Return a seed in ``0 .. 2**63 - 1``; refuse any other."""
    if not 0 <= seed <= _MAX_SEED:
        raise ArgumentError(f"{seed} is not in 0..{_MAX_SEED}", field="seed")
    return seed


@dataclass(frozen=True)
class Factors:
    """Where the two factors of one module come from: everything but the coefficients.

    Attributes
    ----------
    module : str
        Name that the streams are made of.
    r : int
        Rank.
    in_features, out_features : int
        Of the whole layer, whatever part of it this process holds.
    seed : int
    basis : {"rademacher", "uniform"}
    shard : Shard
        The part of the layer's rows and columns that is held here.
    """

    module: str
    r: int
    in_features: int
    out_features: int
    seed: int
    basis: Basis = "rademacher"
    shard: Shard = WHOLE
    _streams: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the streams once."""
        checked_seed(self.seed)
        streams = (stream_id(self.module, "A"), stream_id(self.module, "B"))
        object.__setattr__(self, "_streams", tuple(map(signed_stream, streams)))

    def on(self, shard: Shard) -> Factors:
        """Return the same factors where another part of them is held."""
        return self if shard == self.shard else dataclasses.replace(self, shard=shard)

    @property
    def a_source(self) -> operators.Source:
        """Return which matrix this process's columns of A are, as the operators take it."""
        shape = (self.r, self.in_features)
        cols = self.shard.cols or (0, self.in_features)
        return self.seed, self._streams[0], self.basis, shape, (0, self.r), cols

    @property
    def b_source(self) -> operators.Source:
        """Return which matrix this process's rows of B are, as the operators take it."""
        shape = (self.out_features, self.r)
        rows = self.shard.rows or (0, self.out_features)
        return self.seed, self._streams[1], self.basis, shape, rows, (0, self.r)

    def a(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return this process's columns of A, (r, in) float32."""
        return operators.expand(self.shard.share_alpha(alpha), self.a_source)

    def b(self, beta: torch.Tensor) -> torch.Tensor:
        """Return this process's rows of B, (out, r) float32."""
        return operators.expand(self.shard.share_beta(beta), self.b_source)

    def largest_product(self, alpha: torch.Tensor, beta: torch.Tensor) -> float:
        """Bound the elements of B A by the coefficients alone.

        An element of A is at most sqrt(3 / k) times the sum of |alpha|: sqrt(3) is the largest
        value of the uniform basis, scaled to unit variance.
        """
        sums = float(alpha.double().abs().sum()) * float(beta.double().abs().sum())
        return self.r * 3 / math.sqrt(max(1, len(alpha)) * max(1, len(beta))) * sums


@dataclass(frozen=True, eq=False)
class _Kept:
    """Coefficients and what they expand to."""

    factors: Factors
    alpha: torch.Tensor
    beta: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor

    def serves(
        self, factors: Factors, alpha: torch.Tensor, beta: torch.Tensor, dtype: torch.dtype
    ) -> bool:
        return (
            self.factors == factors
            and self.a.dtype == dtype
            and self.alpha.device == alpha.device
            and torch.equal(self.alpha, alpha)
            and torch.equal(self.beta, beta)
        )


@dataclass(frozen=True, eq=False)
class _Offered:
    """Factors made for a whole model: for these very coefficients, as they are at this moment."""

    factors: Factors
    alpha: torch.Tensor
    beta: torch.Tensor
    versions: tuple[int, int]
    where: tuple[int, bool]
    a: torch.Tensor
    b: torch.Tensor

    def serves(self, factors: Factors, alpha: torch.Tensor, beta: torch.Tensor) -> bool:
        # An interrupted forward pass withdraws nothing; another thread may train the same model.
        return (
            self.alpha is alpha
            and self.beta is beta
            and self.versions == (alpha._version, beta._version)
            and self.where == (get_ident(), torch.is_grad_enabled())
            and self.factors == factors
        )


class FactorCache:
    """Keeps A and B of frozen coefficients, or takes those that were made for a whole model.

    The coefficients themselves are compared, not their version counters, which writes through
    ``.data`` leave alone: a few hundred numbers cost less than what a stale factor would. On a
    GPU with kernels of its own that comparison would wait for the device, and cost more than
    expanding: nothing is kept there.
    """

    def __init__(self) -> None:
        # One reference to an immutable whole: threads that share a layer never see a part of it.
        self._kept: _Kept | None = None
        self._offered: _Offered | None = None

    def offer(
        self,
        factors: Factors,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
    ) -> None:
        """Hand over A and B, to be taken until they are withdrawn (``together.py``)."""
        versions = (alpha._version, beta._version)
        where = (get_ident(), torch.is_grad_enabled())
        self._offered = _Offered(factors, alpha, beta, versions, where, a, b)

    def withdraw(self) -> None:
        """Forget what was offered."""
        self._offered = None

    def get(
        self, factors: Factors, alpha: torch.Tensor, beta: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (A, B) in a dtype, expanded again unless the coefficients are the same.

        Nothing is kept while they train, nor of tensors that torch traces or transforms.

        Parameters
        ----------
        factors : Factors
        alpha : (k,)
        beta : (l,)
        dtype : torch.dtype

        Returns
        -------
        A : (r, in)
        B : (out, r)
        """
        offered = self._offered
        if offered is not None and offered.serves(factors, alpha, beta):
            return offered.a.to(dtype), offered.b.to(dtype)
        training = torch.is_grad_enabled() and (alpha.requires_grad or beta.requires_grad)
        keepable = all(
            operators.is_plain(c) and not operators.has_group_kernels(c.device.type)
            for c in (alpha, beta)
        )
        if training or not keepable:
            if training and not torch.compiler.is_compiling():
                self._kept = None
            return factors.a(alpha).to(dtype), factors.b(beta).to(dtype)
        kept = self._kept
        if kept is None or not kept.serves(factors, alpha, beta, dtype):
            # A factor made in inference mode could not be saved for a backward pass later.
            with torch.inference_mode(False), torch.no_grad():
                alpha, beta = alpha.clone(), beta.clone()
                a, b = factors.a(alpha).to(dtype), factors.b(beta).to(dtype)
            kept = self._kept = _Kept(factors, alpha, beta, a, b)
        return kept.a, kept.b

    def __deepcopy__(self, memo: dict[int, object]) -> FactorCache:
        return FactorCache()

    def __reduce__(self) -> tuple[type[FactorCache], tuple[()]]:
        return FactorCache, ()


def fresh_coefficients(
    num_basis_a: int, num_basis_b: int, in_features: int, start: str = "unit"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients that training starts from; they do not change the layer.

    Parameters
    ----------
    num_basis_a, num_basis_b : int
        k and l.
    in_features : int
        Of the layer.
    start : {"unit", "unit-frozen", "random", "aligned"}
        ``unit``: alpha = (sqrt(k / (3 in)), 0, ..., 0), so that A is one random matrix;
        ``unit-frozen``: the same, and the layer does not train the first coefficient.
        ``aligned``: the same, until :func:`nola_edge.torch.align_start` has seen data.
        ``random``: every alpha_i normal with mean 0 and variance 1 / (3 in), from torch's global
        generator, as LoRA's own start is. All give A the variance of Kaiming-uniform(a = sqrt 5).
        beta is zero.

    Returns
    -------
    alpha : (k,) float32
    beta : (l,) float32

    Raises
    ------
    ValueError
        If `start` is not known.
    """
    beta = torch.zeros(num_basis_b)
    if start in ("unit", "unit-frozen", "aligned"):
        # Element by element: valid on a meta device too, where numpy's memory is not.
        alpha = torch.zeros(num_basis_a)
        alpha[0] = float(unit_start(num_basis_a, in_features)[0])
        return alpha, beta
    if start == "random":
        return torch.randn(num_basis_a) / (3 * in_features) ** 0.5, beta
    raise ArgumentError(f"{start!r} is not known; use one of {', '.join(STARTS)}", field="start")


def trained_alpha(alpha: torch.Tensor, start: str) -> torch.Tensor:
    """Return alpha, cut from the graph at its first coefficient where that one stays as it is."""
    if start != "unit-frozen":
        return alpha
    return torch.cat([alpha[:1].detach(), alpha[1:]])


def concatenated(
    terms: Sequence[tuple[torch.Tensor, torch.Tensor, float]],
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Join several updates (A, B, scaling) of one weight into one (docs/design.md, *Merge*).

    One term keeps its scaling; of several, each B is multiplied by its own in fp32, and ranks are
    concatenated, so that the sum is rounded once.
    """
    if len(terms) == 1:
        return terms[0]
    a = torch.cat([a for a, _, _ in terms])
    b = torch.cat([_scaled(b, s) for _, b, s in terms], dim=1)
    return a, b, 1.0


def _scaled(b: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply by fl32(factor), whatever floating-point environment torch has set."""
    if b.device.type == "cuda":  # where there is no such environment
        return b.detach() * torch.tensor(factor, dtype=torch.float32, device=b.device)
    values = b.detach().to("cpu", copy=True).contiguous()
    _core.scale_at(values.data_ptr(), values.numel(), factor)
    return values.to(b.device)
