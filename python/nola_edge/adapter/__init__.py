"""The adapter: a seed, a few thousand coefficients, and what they mean."""

from nola_edge.adapter.adapter import Adapter, Coefficients
from nola_edge.adapter.config import AdapterConfig

__all__ = ["Adapter", "AdapterConfig", "Coefficients"]
