"""An earlier name of :mod:`nola_edge.adapters`, kept for programs that import it."""

from nola_edge.adapters import Adapter, AdapterConfig, Coefficients, LowRankAdapter, load_adapter

__all__ = ["Adapter", "AdapterConfig", "Coefficients", "LowRankAdapter", "load_adapter"]
