"""The adapter: a seed, a few thousand coefficients, and what they mean."""

from nola_edge.adapter.adapter import Adapter
from nola_edge.adapter.config import AdapterConfig
from nola_edge.adapter.files import Coefficients
from nola_edge.adapter.load import load_adapter
from nola_edge.adapter.low_rank import LowRankAdapter

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Coefficients",
    "LowRankAdapter",
    "load_adapter",
]
