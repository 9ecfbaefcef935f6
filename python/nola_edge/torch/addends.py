"""What is merged into what torch holds: one term for each adapter that changes it."""

from __future__ import annotations

import torch

from nola_edge.torch.factors import Factors
from nola_edge.torch.stored_factors import BiasFactors, StoredFactors

#: Factors, alpha, beta, scaling: one adapter's share in one weight.
Addend = tuple[Factors | StoredFactors | BiasFactors, torch.Tensor, torch.Tensor, float]
#: … of an adapter whose factors are expanded from coefficients.
NolaAddend = tuple[Factors, torch.Tensor, torch.Tensor, float]

#: Dtypes that can be merged, with their names in files.
MERGEABLE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
