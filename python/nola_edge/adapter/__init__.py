"""The adapter: a seed, a few thousand coefficients, and what they mean."""

from nola_edge.adapter.adapter import Adapter
from nola_edge.adapter.config import AdapterConfig
from nola_edge.adapter.files import Coefficients

__all__ = ["Adapter", "AdapterConfig", "Coefficients"]
