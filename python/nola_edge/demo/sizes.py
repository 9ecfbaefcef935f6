"""What has to be shipped to change a model: all of it, a LoRA, or a seed and coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_edge.adapters import Adapter
from nola_edge.files.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from pathlib import Path

_BF16_BYTES = 2


@dataclass(frozen=True)
class Size:
    """Numbers that a way of fine-tuning ships, and their bytes in BF16 without any header."""

    way: str
    numbers: int
    bf16_bytes: int


def sizes(weights: Path, adapter: Path) -> list[Size]:
    """Compare full fine-tuning, LoRA of the adapter's rank on the same modules, and the adapter.

    Parameters
    ----------
    weights : Path
        The base's safetensors file.
    adapter : Path
    """
    loaded = Adapter.load(adapter)
    rank = loaded.config.r
    with SafetensorsFile.open(weights) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    counts = {
        "full fine-tuning": sum(map(math.prod, shapes.values())),
        f"LoRA, r = {rank}": rank * sum(sum(shapes[f"{name}.weight"]) for name in loaded.modules),
        f"NOLA, r = {rank}": loaded.num_coefficients,
    }
    return [Size(way, numbers, _BF16_BYTES * numbers) for way, numbers in counts.items()]
