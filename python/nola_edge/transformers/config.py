"""What a caller gives to ``from_pretrained``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from nola_edge.adapters.renames import Renames
from nola_edge.merge.plan import load_adapters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The name under which transformers knows the plug-in.
METHOD = "nola_merge"


@register_quantization_config(METHOD)
class NolaMergeConfig(QuantizationConfigMixin):
    """Merge adapters into each weight as it is loaded.

    This uses transformers' interface for quantisers, because it sees each parameter between the
    file and the model; nothing is quantised. If another dtype than the file's is requested,
    transformers rounds to it first: the bits are then those of ``merge_`` on the model loaded in
    that dtype, not those of a merged checkpoint loaded in it.

    Parameters
    ----------
    adapter : Adapter, path, or sequence of these or of pairs (adapter, weight)
        What to merge; read and checked immediately, before anything is loaded.
    check_base : bool
        Refuse a base that is not the one an adapter recorded, as ``nola-edge merge`` does; for a
        base in safetensors files.
    rename : mapping from NEW to OLD, or iterable of "NEW=OLD", optional
        As for :func:`nola_edge.merge_checkpoint`; OLD is what the model calls a module, whatever
        its files call it.

    Raises
    ------
    NolaEdgeError
        If an adapter or a rule cannot be used.
    """

    quant_method: Any = METHOD

    def __init__(
        self,
        adapter: Any,
        check_base: bool = True,
        rename: Mapping[str, str] | Iterable[str] | None = None,
    ) -> None:
        self.quant_method = METHOD  # an attribute of its own, which transformers copies
        self.adapters = load_adapters(adapter)
        self.check_base = check_base
        self.rename = Renames(rename).rules

    def to_dict(self) -> dict[str, Any]:
        """Describe the merge in JSON; a loaded model does not keep it."""
        return {
            "quant_method": METHOD,
            "adapter": [[str(adapter.path), weight] for adapter, weight in self.adapters],
            "check_base": self.check_base,
            "rename": self.rename,
        }
