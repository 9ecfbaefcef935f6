"""The adapter: a seed, a few thousand coefficients, and what they mean."""

from nola_edge.adapters.base import LowRankAdapter
from nola_edge.adapters.expected import ExpectedResult
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.nola import Adapter
from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.nola_files import Coefficients

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Coefficients",
    "ExpectedResult",
    "LowRankAdapter",
    "load_adapter",
]
