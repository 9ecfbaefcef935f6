"""Older name of :mod:`nola_edge.export.public_nola`."""

from nola_edge.export.public_nola import ConversionReport, convert_checkpoint

__all__ = ["ConversionReport", "convert_checkpoint"]
