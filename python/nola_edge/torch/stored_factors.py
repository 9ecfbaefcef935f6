"""Factors that an adapter has in its file, for weights and biases that torch holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nola_edge.torch.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from nola_edge.adapters.base import LowRankAdapter


@dataclass(frozen=True)
class StoredFactors:
    """Factors that an adapter gives as arrays; stands where :class:`Factors` does in a merge.

    There are no coefficients: what goes by that name only says on which device the factors are
    wanted.

    Attributes
    ----------
    adapter : LowRankAdapter
    module : str
    in_features, out_features : int
        Of the whole layer, whatever part of it this process holds.
    shard : Shard
        The part of the layer's rows and columns that is held here.
    """

    adapter: LowRankAdapter
    module: str
    in_features: int
    out_features: int
    shard: Shard = WHOLE

    @property
    def r(self) -> int:
        """Return the rank."""
        return self.adapter.rank(self.module)

    def on(self, shard: Shard) -> StoredFactors:
        """Return the same factors where another part of them is held."""
        return dataclasses.replace(self, shard=shard)

    def a(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return this process's columns of A, (r, in) float32, on the device of `alpha`."""
        a = self.adapter.factor_a(self.module, self.in_features, self.shard.cols)
        return torch.from_numpy(a).to(alpha.device)

    def b(self, beta: torch.Tensor) -> torch.Tensor:
        """Return this process's rows of B, (out, r) float32, on the device of `beta`."""
        b = self.adapter.factor_b(self.module, self.out_features, self.shard.rows)
        return torch.from_numpy(b).to(beta.device)

    def largest_product(self, alpha: torch.Tensor, beta: torch.Tensor) -> float:
        """Bound the elements of B A."""
        a = self.adapter.factor_a(self.module, self.in_features)
        b = self.adapter.factor_b(self.module, self.out_features)
        return self.r * float(np.abs(a).max()) * float(np.abs(b).max())


@dataclass(frozen=True)
class BiasFactors:
    """What an adapter adds to a bias, as the factors of a matrix of one column: A is 1.

    Stands where :class:`StoredFactors` does, so that a bias is merged as a weight is.

    Attributes
    ----------
    adapter : LowRankAdapter
    module : str
    shard : Shard
        The part of the rows that is held here.
    """

    adapter: LowRankAdapter
    module: str
    shard: Shard = WHOLE
    r: int = 1

    def on(self, shard: Shard) -> BiasFactors:
        """Return the same factors where another part of them is held."""
        return dataclasses.replace(self, shard=shard)

    def a(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return (1, 1) float32, on the device of `alpha`."""
        return torch.ones((1, 1), dtype=torch.float32, device=alpha.device)

    def b(self, beta: torch.Tensor) -> torch.Tensor:
        """Return this process's rows, (out, 1) float32, on the device of `beta`."""
        values = self.adapter.added_biases[self.module]
        part = values.read(*(self.shard.rows or (0, values.size))).astype(np.float32)
        return torch.from_numpy(part[:, None]).to(beta.device)

    def largest_product(self, alpha: torch.Tensor, beta: torch.Tensor) -> float:
        """Bound what is added, but for the scaling."""
        values = self.adapter.added_biases[self.module].array()
        return float(np.abs(values.astype(np.float32)).max())
