"""Merging adapters into a transformers model while it is loaded.

>>> from transformers import AutoModelForCausalLM
>>> from nola_edge.transformers import NolaMergeConfig
>>> model = AutoModelForCausalLM.from_pretrained(
...     "base-model", quantization_config=NolaMergeConfig("adapter")
... )  # doctest: +SKIP

The result is a plain model: its weights are merged, and no trace of the adapter is left.
``load.py`` says it in one call; ``config.py`` is what a caller gives, ``quantizer.py`` what
transformers calls.
"""

from nola_edge.extras import explained

try:
    from nola_edge.transformers.config import NolaMergeConfig
    from nola_edge.transformers.load import load_merged
    from nola_edge.transformers.quantizer import NolaMergeQuantizer
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.transformers", "peft") from None

__all__ = ["NolaMergeConfig", "NolaMergeQuantizer", "load_merged"]
