"""Training with torch: operators, a layer, and merging into tensors.

``operators.py`` declares the operators; ``backends`` gives them kernels, on devices without any
through the CPU's. ``factors.py`` makes A and B of a layer from its coefficients,
``expand_together.py`` those of a whole model at once; ``functional.py`` and ``linear.py`` are for
one's own training loop, ``nola_edge.peft`` for PEFT's; ``sharding.py`` splits layers over
processes; ``merge.py`` merges into tensors, :mod:`nola_edge.models` into models in memory.
"""

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.start import unit_of_beta
from nola_edge.extras import explained

try:
    from nola_edge.torch.aligned_start import align_start
    from nola_edge.torch.expand_together import expand_together
    from nola_edge.torch.factors import Factors, fresh_coefficients
    from nola_edge.torch.functional import expand, nola_delta, nola_linear, project
    from nola_edge.torch.linear import NolaLinear, to_adapter
    from nola_edge.torch.merge import merge_factors_, merge_low_rank_
    from nola_edge.torch.quantize import fake_quantize
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.torch", "torch") from None

if TYPE_CHECKING:
    from nola_edge.models.merge import merge_
    from nola_edge.models.switch import AdapterSwitch
    from nola_edge.transformers.load import load_merged

__all__ = [
    "AdapterSwitch",
    "Factors",
    "NolaLinear",
    "align_start",
    "expand",
    "expand_together",
    "fake_quantize",
    "fresh_coefficients",
    "load_merged",
    "merge_",
    "merge_factors_",
    "merge_low_rank_",
    "nola_delta",
    "nola_linear",
    "project",
    "to_adapter",
    "unit_of_beta",
]

#: Names of what is built upon this package, and is found here too.
_ABOVE = {
    "AdapterSwitch": "nola_edge.models",
    "load_merged": "nola_edge.transformers",
    "merge_": "nola_edge.models",
}


def __getattr__(name: str) -> Any:
    if name in _ABOVE:
        from importlib import import_module

        return getattr(import_module(_ABOVE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
