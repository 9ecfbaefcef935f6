"""What an entry of the cache is: its name, its size, and how to tell that it is complete."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import AdapterError, NolaEdgeError, printable
from nola_edge.export.lora import lora_config
from nola_edge.files.paths import inside, read_inside
from nola_edge.files.safetensors import SafetensorsFile, encode_header
from nola_edge.files.strict_json import dumps, loads_object

if TYPE_CHECKING:
    from pathlib import Path

    from nola_edge.adapters import Adapter
    from nola_edge.merge.plan import MergePlan

#: To be raised when the same adapter is to give other files.
FORMAT = 2

_NAME = re.compile(r"nola-lora-[0-9a-f]{32}")
_MAX_CONFIG_BYTES = 20_000_000
#: Reserved for how a configuration is laid out.
_SPARE_BYTES = 256


def is_entry_name(name: str) -> bool:
    """Tell whether a folder of this name is an entry; the cache touches no other."""
    return _NAME.fullmatch(name) is not None


def check_servable(adapter: Adapter) -> None:
    """Refuse an adapter that is more than a LoRA to vLLM, before it is expanded.

    Raises
    ------
    AdapterError
        If it trained biases or whole modules.
    """
    config = adapter.config
    for field, value, off in (
        ("modules_to_save", list(config.modules_to_save), []),
        ("bias", config.bias, "none"),
    ):
        if value != off:
            raise AdapterError(
                f"is {printable(value)}: tensors were trained whole, which vLLM does not load; "
                "merge the adapter with nola-edge merge, and serve the result",
                file=adapter.path,
                field=field,
                value=value,
            )


@dataclass(frozen=True)
class Entry:
    """The expanded form of one adapter on one base, known before it is made.

    Attributes
    ----------
    name : str
        Of the folder: a digest of all that determines its files.
    tensors : dict
        Tensor name -> (dtype, shape).
    config : dict
        Its ``adapter_config.json``.
    nbytes : int
        The most bytes that its files will take.
    """

    name: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    config: dict[str, Any]
    nbytes: int

    @staticmethod
    def of(adapter: Adapter, plan: MergePlan, dtype: str) -> Entry:
        """Describe the entry of an adapter that has been checked against its base.

        Parameters
        ----------
        adapter : Adapter
        plan : MergePlan
            Of this adapter alone; says how large the modules are.
        dtype : {"F32", "F16", "BF16"}
        """
        config = adapter.config
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for term in (term for terms in plan.merges.values() for term in terms):
            out_features, in_features = term.target.features
            stem = PREFIX + term.module
            tensors[f"{stem}.lora_A.weight"] = (dtype, (config.r, in_features))
            tensors[f"{stem}.lora_B.weight"] = (dtype, (out_features, config.r))
        wanted = lora_config(adapter)
        name = f"nola-lora-{_digest(adapter, tensors)}"
        return Entry(name, tensors, wanted, _most_bytes(tensors, wanted))

    def is_complete(self, folder: Path) -> bool:
        """Tell whether a folder holds this entry: every tensor, of its size, and no byte more."""
        try:
            data = read_inside(folder, CONFIG_NAME, _MAX_CONFIG_BYTES)
            config = loads_object(data, file=folder / CONFIG_NAME)
            with SafetensorsFile.open(inside(folder, WEIGHTS_NAME)) as file:
                tensors = {name: (i.dtype, i.shape) for name, i in file.tensors.items()}
        except (NolaEdgeError, OSError):
            return False
        return tensors == self.tensors and config == self.config


def _digest(adapter: Adapter, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    """Digest what was read, not the files: they might have changed in between."""
    described = {"format": FORMAT, "config": adapter.config.to_json(), "tensors": tensors}
    digest = hashlib.sha256(dumps(described, sort_keys=True).encode())
    for module, coefficients in sorted(adapter.modules.items()):
        digest.update(f"\n{module}\n".encode())
        for values in (coefficients.alpha, coefficients.beta):
            digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()[:32]


def _most_bytes(tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any]) -> int:
    entries = [
        (name, dtype, shape, shape[0] * shape[1] * numpy_dtype(dtype).itemsize)
        for name, (dtype, shape) in tensors.items()
    ]
    weights = len(encode_header(entries, {"format": "pt"})) + sum(size for *_, size in entries)
    return weights + len(dumps(config, indent=2)) + _SPARE_BYTES
