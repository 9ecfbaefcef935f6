"""Training with torch: operators, a layer, and merging into a model in memory.

``library.py`` declares the operators, ``cpu.py`` and ``cuda.py`` give them kernels, and ``host.py``
serves other devices through the CPU's; ``factors.py`` makes A and B of a layer from its
coefficients, ``together.py`` those of a whole model at once; ``functional.py`` and ``linear.py``
are for one's own training loop, ``nola_edge.peft`` for PEFT's; ``sharding.py`` splits layers over
processes; ``merge.py`` merges into weights, ``plan.py`` and ``model.py`` into models in memory,
``switch.py`` switches them.
"""

from nola_edge.extras import explained

try:
    from nola_edge.torch.factors import Factors, fresh_coefficients
    from nola_edge.torch.functional import expand, nola_delta, nola_linear, project
    from nola_edge.torch.linear import NolaLinear, to_adapter
    from nola_edge.torch.merge import merge_factors_, merge_low_rank_
    from nola_edge.torch.model import load_merged, merge_
    from nola_edge.torch.quantize import fake_quantize
    from nola_edge.torch.switch import AdapterSwitch
    from nola_edge.torch.together import expand_together
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.torch", "torch") from None

__all__ = [
    "AdapterSwitch",
    "Factors",
    "NolaLinear",
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
]
