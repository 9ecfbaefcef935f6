"""Models in memory: merge adapters into a torch model's weights, or switch between them."""

from nola_edge.extras import explained

try:
    from nola_edge.models.merge import merge_
    from nola_edge.models.switch import AdapterSwitch
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.models", "torch") from None

__all__ = ["AdapterSwitch", "merge_"]
